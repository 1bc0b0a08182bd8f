"""The weights of a model folder as named, memory-mapped tensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from medsft.chatglm.weights.formats import map_tensors
from medsft.chatglm.weights.shards import find_shards
from medsft.errors import UserError

EMBEDDING_NAME = "transformer.word_embeddings.weight"
HEAD_NAME = "lm_head.weight"
# Where the config ties the two, a file may hold either alone (save_pretrained stores one) or both.
TIED_PARTNERS = {EMBEDDING_NAME: HEAD_NAME, HEAD_NAME: EMBEDDING_NAME}


class WeightFiles:
    """Named tensors of one model folder; nothing is read before it is asked for.

    The tensors given out are views of mapped files: copy out of them, never write into them. Files must not
    be changed while they are open (a truncated file would end the process with SIGBUS).

    bytes_read: bytes asked for so far through `read` and `read_range`.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor], files: Mapping[str, Path]) -> None:
        self.folder = folder
        self.bytes_read = 0
        self._tensors = dict(tensors)
        self._files = dict(files)

    @property
    def names(self) -> tuple[str, ...]:
        """Names as stored, shard by shard, in the files' order."""
        return tuple(self._tensors)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The weight files, each once, in order."""
        return tuple(dict.fromkeys(self._files.values()))

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def file(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self._files[self.stored_name(name)]

    def num_bytes_of(self, name: str) -> int:
        """Bytes of the tensor as stored."""
        return self._tensors[self.stored_name(name)].nbytes

    def place(self, name: str) -> str:
        """The tensor's name and its file, for messages."""
        return f"{name} ({self.file(name)})"

    def shape(self, name: str) -> torch.Size:
        """Shape of the tensor as stored."""
        return self._tensors[self.stored_name(name)].shape

    def dtype(self, name: str) -> torch.dtype:
        """Type of the tensor as stored."""
        return self._tensors[self.stored_name(name)].dtype

    def stored_name(self, name: str) -> str:
        """`name`, or its tied partner where the files hold only that one.

        Raises UserError naming the folder when neither is there.
        """
        if name in self._tensors:
            return name
        partner = TIED_PARTNERS.get(name)
        if partner in self._tensors:
            return partner
        raise UserError(
            f"{self.folder} holds no tensor {name!r}. Take the weights from the release that config.json is "
            "from."
        )

    def read(self, name: str) -> Tensor:
        """The whole tensor, mapped: no byte is copied, pages come from the file as they are touched."""
        tensor = self._tensors[self.stored_name(name)]
        self.bytes_read += tensor.nbytes
        return tensor

    def read_range(self, name: str, start: int, end: int) -> Tensor:
        """Elements `start` to `end` (exclusive) of the flattened tensor: a flat, mapped view [end - start].

        Only the pages of this range are touched, once the caller copies out of the view.
        """
        tensor = self._tensors[self.stored_name(name)]
        assert 0 <= start <= end <= tensor.numel(), (name, start, end, tensor.numel())
        # Flattening a tensor saved with other strides copies it; no released file has one.
        flat = tensor.reshape(-1)[start:end]
        self.bytes_read += flat.nbytes
        return flat


def open_weights(folder: str | Path) -> WeightFiles:
    """Maps the weights of `folder`: safetensors or ``.bin``, one file or shards, with or without an index.

    Raises UserError naming the file and the remedy: folder or shard missing, git-lfs pointer, truncated or
    damaged file, a tensor in two shards, an index that does not fit its shards.
    """
    folder = Path(folder)
    shards = find_shards(folder)
    tensors: dict[str, Tensor] = {}
    files: dict[str, Path] = {}
    for path in shards.files:
        for name, tensor in map_tensors(path).items():
            if name in files:
                raise UserError(
                    f"The tensor {name} is in two files, {files[name].name} and {path.name} in {folder}: "
                    "shards of different sets are mixed. Download all shards of one release again."
                )
            tensors[name] = tensor
            files[name] = path
    for name, file_name in (shards.weight_map or {}).items():
        if name not in files or files[name].name != file_name:
            where = f"is in {files[name].name}" if name in files else "is in none of the shards"
            raise UserError(
                f"The index of {folder} says that {file_name} holds {name}, but it {where}: index and shards "
                f"are of different sets. Download the index and {file_name} again from one release."
            )
    return WeightFiles(folder, tensors, files)
