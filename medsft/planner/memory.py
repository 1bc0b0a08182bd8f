"""Bytes of a run, by component and stage, on one GPU and for one rank in the host's memory.

Everything here follows what DeepSpeed 0.19.8 and this trainer allocate. P: parameters; n: elements of a
rank's slices, about P / ranks; s: bytes of a weight in the forward pass (2, or 4 in fp32); V x E: the
embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from medsft.planner.lengths import StepSizes
from medsft.planner.settings import ZeroSettings
from medsft.planner.shape import Shape

FP32 = 4
LOGITS_BYTES = 12
"""Of a logit in the loss's backward pass: log-probability, its gradient and that of the logit, all in
fp32."""

FLASH_PLACES = 1.75
"""Places a token where attention is two calls of flash attention: 7E of a token are kept beside the rest, the
query-key-value product 3E (the values are a view of it), keys E, queries E, and of the context, half of the
tokens, keys and values once more, E; results are E, and E again in order."""

PROCESS_BYTES = 0.3e9
"""Private memory of a rank without a GPU, imports and engine included; measured, see docs/performance.md."""
CUDA_PROCESS_BYTES = 3.0e9
"""The same with CUDA and NCCL: an allowance, not measured here."""
CUDA_CONTEXT_BYTES = 1.5e9
"""On the GPU: context, kernels, NCCL's and cuBLAS's buffers: an allowance, not measured here."""
FRAGMENTATION = 0.05
"""Share of what comes and goes on a GPU that the allocator cannot use: an allowance, not measured here."""

_NORM_PIECE = 250_000_000  # elements of which DeepSpeed takes a norm at once, where it offloads
_FP64 = 8


@dataclass(frozen=True)
class Stage:
    """What is held at the worst moment of a part of the run, component -> bytes.

    Attributes:
        name: load, forward and backward, optimiser step, save, or resume.
        gpu: on each GPU.
        host: in the host's memory, for each rank.
    """

    name: str
    gpu: Mapping[str, float]
    host: Mapping[str, float]

    @property
    def gpu_bytes(self) -> float:
        """All of a GPU."""
        return sum(self.gpu.values())

    @property
    def host_bytes(self) -> float:
        """All of a rank on the host."""
        return sum(self.host.values())


@dataclass(frozen=True)
class Place:
    """Where it runs: `has_gpu`: not on the CPU alone; `world_size`: ranks in all."""

    has_gpu: bool
    world_size: int


@dataclass(frozen=True)
class Saves:
    """`checkpoints`: the run saves them, from a copy in host memory. `shard_bytes`: largest model file."""

    checkpoints: bool = True
    shard_bytes: float = 2e9


def checkpoint_bytes(num_parameters: float) -> float:
    """A checkpoint, and its copy in host memory over all ranks: fp32 weight and two moments, 12 B."""
    return 3 * FP32 * num_parameters


def activation_bytes(
    shape: Shape,
    num_slots: float,
    num_places: float,
    mask_width: float,
    bytes_a_value: int,
    checkpointing: bool,
) -> float:
    """What the forward pass of a micro-batch keeps for the backward pass, without the logits.

    A block keeps for each token, in elements: input of its first LayerNorm E, that of the query-key-value
    product E, result of the attention E, input of the second LayerNorm E, that of the feed-forward E, and F
    before and F after GELU: 5E + 2F; and four fp32 numbers for the LayerNorms. For each of the `num_places`
    where attention computes: turned query and key, value and result, 4E; the mask as numbers, a row of
    `mask_width`; a fp32 number a head for the softmax. Final LayerNorm: 2E.
    With checkpointing only the input E of each block stays, and one block at a time is done again.
    """
    width, inner = shape.hidden_size, shape.inner_hidden_size
    tokens = num_slots * (bytes_a_value * (5 * width + 2 * inner) + FP32 * 4)
    places = num_places * (bytes_a_value * (4 * width + mask_width) + FP32 * shape.num_attention_heads)
    block, ends = tokens + places, 2 * bytes_a_value * width * num_slots
    if checkpointing:
        return num_slots * shape.num_layers * bytes_a_value * width + block + ends
    return shape.num_layers * block + ends


def logits_bytes(shape: Shape, num_targets: float) -> float:
    """Peak of the loss: only rows that predict a supervised token have logits, V of them, 12 B each."""
    return LOGITS_BYTES * shape.vocab_size * num_targets


def pinned_bytes(sizes: Iterable[float]) -> float:
    """Page-locked memory for buffers of these sizes: torch rounds each up to a power of two.

    `roundSize` in ATen/core/CachingHostAllocator.h, with the default `pinned_max_round_threshold`.
    """
    return float(sum(2 ** math.ceil(math.log2(size)) for size in sizes if size > 0))


def live_elements(shape: Shape, settings: ZeroSettings, world_size: int) -> float:
    """Most elements of gathered weights at a time.

    A single rank's slices are the weights themselves. Else at most `stage3_max_live_parameters` are kept and
    fetched ahead, but always the whole of the parameter in use; a small model stays gathered altogether.
    """
    if world_size == 1 and settings.offload_param == "none":
        return 0
    return min(shape.num_parameters, max(settings.max_live, shape.matrix_parameters))


def blocks_gradients(shape: Shape, bucket: int) -> Iterator[tuple[int, int]]:
    """Each time that a bucket is sent in the backward pass: (elements that wait outside, elements in it).

    A block is a leaf module of ZeRO-3: all of its gradients live until the hook at the end of its backward
    pass takes them to the bucket one by one, which frees what fits into it, and sends the bucket before the
    one that does not (`reduce_leaf_module_grads`, `reduce_independent_p_g_buckets_and_remove_grads` in
    deepspeed/runtime/zero/stage3.py). One that is larger than the bucket is sent from where it is.
    """
    outside, in_bucket = 0, 2 * shape.hidden_size  # the final LayerNorm's
    for _ in range(shape.num_layers):
        waiting = shape.layer_parameters + outside
        yield waiting, 0
        for size in shape.block_tensors:
            if in_bucket and in_bucket + size > bucket:
                yield waiting, in_bucket
                waiting -= outside
                outside = in_bucket = 0
            in_bucket += size
            if size > bucket:
                outside = size
            else:
                waiting -= size


def stages(
    shape: Shape, settings: ZeroSettings, place: Place, sizes: StepSizes, checkpointing: bool, saves: Saves
) -> tuple[Stage, ...]:
    """Load, forward and backward, optimiser step, save and resume. Without a GPU all of it is on the host."""
    parts = _Parts(shape, settings, place, sizes, checkpointing, saves)
    found = (parts.load(), parts.passes(), parts.update(), parts.save(), parts.resume())
    return found if place.has_gpu else tuple(_on_host(stage) for stage in found)


def _on_host(stage: Stage) -> Stage:
    both = dict(stage.host)
    for name, size in stage.gpu.items():
        both[name] = both.get(name, 0) + size
    return Stage(stage.name, {}, both)


class _Parts:
    """The components; each method is a stage's worst moment."""

    def __init__(
        self,
        shape: Shape,
        settings: ZeroSettings,
        place: Place,
        sizes: StepSizes,
        checkpointing: bool,
        saves: Saves,
    ) -> None:
        self.shape, self.settings, self.place, self.saves = shape, settings, place, saves
        self.ranks = place.world_size
        self.width = settings.bytes_a_weight
        self.elements = shape.slice_elements(self.ranks)
        self.groups = shape.sub_groups(self.ranks, settings.sub_group)
        self.largest_slice = math.ceil(shape.matrix_parameters / self.ranks)
        places, mask_width = sizes.largest_places, sizes.mask_width
        if place.has_gpu and settings.precision == "bf16":
            places, mask_width = FLASH_PLACES * sizes.largest_slots, 0
        self.activations = activation_bytes(
            shape, sizes.largest_slots, places, mask_width, self.width, checkpointing
        )
        self.logits = logits_bytes(shape, sizes.largest_targets)
        # The C library keeps blocks below 32 MB to itself: on the CPU this memory outlives the activations.
        self.not_given_back = 0.0 if place.has_gpu else self.activations
        self.offloads = settings.offload_optimizer != "none"

    def _pinned(self, sizes: Iterable[float], pins: bool) -> float:
        return pinned_bytes(sizes) if pins and self.place.has_gpu else float(sum(sizes))

    def weights(self) -> Stage:
        """Slices of the weights, hpZ's further copy, small parameters kept whole; processes."""
        settings, shape = self.settings, self.shape
        gpu = {"CUDA, NCCL": CUDA_CONTEXT_BYTES} if self.place.has_gpu else {}
        host = {"process": CUDA_PROCESS_BYTES if self.place.has_gpu else PROCESS_BYTES}
        own = self.width * self.elements
        if settings.offload_param == "none":
            gpu["weights"] = own
        else:
            host["weights"] = self._pinned([own], settings.pins_param)
        if self.ranks > 1:
            gpu["small parameters, whole"] = self.width * shape.kept_whole(settings.persistence)
        if 1 < settings.hpz < self.ranks:
            gpu["weights again (hpZ)"] = self.width * shape.slice_elements(settings.hpz)
        return Stage("weights", gpu, host)

    def engine(self) -> Stage:
        """With what DeepSpeed makes at its start: fp32 weights, buffers for gradients, the reduce bucket.

        The fp32 weights are a copy of their own even in fp32: DeepSpeed compares a device with its name,
        and never finds them equal. Offloaded to host memory, gradients are kept twice: as they are added up,
        and as Adam takes them (`grad_partitions_flat_buffer` and the sub-groups' `.grad`).
        """
        made = self.weights()
        gpu, host, settings = dict(made.gpu), dict(made.host), self.settings
        flat = FP32 * self.elements
        if self.offloads:
            host["gradients, fp32"] = self._pinned([flat], settings.pins_optimizer)
        else:
            gpu["gradients, fp32"] = flat
            gpu["Adam: fp32 weights"] = flat
        if settings.offload_optimizer == "cpu":
            again = [FP32 * size for size in self.groups]
            host["gradients again, for Adam"] = self._pinned(again, settings.pins_optimizer)
            host["Adam: fp32 weights"] = flat
        if settings.offload_optimizer == "nvme":
            buffers = [FP32 * max(self.groups)] * settings.nvme_buffers
            host["NVMe buffers"] = self._pinned(buffers, settings.pins_optimizer)
        gpu["reduce bucket"] = self.width * settings.reduce_bucket
        return Stage("engine", gpu, host)

    def resident(self) -> Stage:
        """What stays throughout the training."""
        made = self.engine()
        gpu, host = dict(made.gpu), dict(made.host)
        moments = 2 * FP32 * self.elements
        if self.settings.offload_optimizer == "none":
            gpu["Adam: moments"] = moments
        elif self.settings.offload_optimizer == "cpu":
            host["Adam: moments"] = moments
        if self.saves.checkpoints:
            pieces = [FP32 * math.ceil(size / self.ranks) for size in self.shape.tensors()] * 3
            host["copy for checkpoints"] = self._pinned(pieces, True)
        return Stage("resident", gpu, host)

    def load(self) -> Stage:
        """While the engine is built: a sub-group is cast and cloned; weights pass the host once more."""
        made = self.engine()
        gpu, host = dict(made.gpu), dict(made.host)
        (host if self.offloads else gpu)["being cast"] = FP32 * max(self.groups)
        host["weights on their way"] = self.width * self.elements
        return Stage("load", gpu, host)

    def passes(self) -> Stage:
        """Forward and backward: the worst of loss, blocks, and the embedding's gradient at the end.

        With a tied head its gradient, V x E, waits from the loss until the embedding adds its own. A bucket
        is copied once for the reduce-scatter and its share turned to fp32. On CPU ranks gloo reduces a clone
        of all that it is to scatter, on a single rank too (`reduce_scatter_tensor_coalesced` in
        torch/csrc/distributed/c10d/ProcessGroupGloo.cpp). What the activations leave behind comes on top.
        """
        made, shape, ranks = self.resident(), self.shape, self.ranks
        gpu, host = dict(made.gpu), dict(made.host)
        matrix = self.width * shape.matrix_parameters
        to_fp32 = FP32 if self.width != FP32 else 0
        copies = 1 if self.place.has_gpu else 2
        in_blocks = matrix * shape.tie_word_embeddings + max(
            self.width * waiting + sent * (self.width * copies + to_fp32 / ranks)
            for waiting, sent in blocks_gradients(shape, self.settings.reduce_bucket)
        )
        norm = _FP64 * min(self.largest_slice, _NORM_PIECE) if self.offloads else 0
        at_the_end = max(
            2 * matrix, matrix + (to_fp32 + (FP32 if self.offloads else 0)) * self.largest_slice + norm
        )
        at_the_end += (copies - 1) * matrix
        moments = {
            "logits": (self.activations, self.logits, matrix),
            "gradients on their way": (self.activations, 0.0, in_blocks),
            "embedding's gradient": (self.not_given_back, 0.0, at_the_end),
        }
        activations, logits, gradients = max(moments.values(), key=sum)
        gpu["activations"] = activations
        gpu["logits"] = logits
        gpu["gradients on their way"] = gradients
        gpu["gathered weights"] = self.width * live_elements(shape, self.settings, ranks)
        return self._with_fragments("forward and backward", gpu, host, self.resident())

    def update(self) -> Stage:
        """Adam: a sub-group's gradients flattened; or, before, the norm of the largest slice in fp64.

        torch's fused AdamW needs no memory of its own.
        """
        made = self.resident()
        gpu, host = dict(made.gpu), dict(made.host)
        if not self.offloads:
            gpu["gradients of a sub-group"] = max(FP32 * max(self.groups), _FP64 * self.largest_slice)
        gpu["activations, not given back"] = self.not_given_back
        return self._with_fragments("optimiser step", gpu, host, made)

    def save(self) -> Stage:
        """Writing the model at the end: rank 0 holds a file's tensors twice, and a parameter on the GPU."""
        made = self.resident()
        gpu, host = dict(made.gpu), dict(made.host)
        gpu["a parameter, gathered"] = self.width * self.shape.matrix_parameters if self.ranks > 1 else 0.0
        model = self.width * self.shape.num_parameters
        host["a model file (rank 0)"] = 2 * min(
            model, max(self.saves.shard_bytes, self.width * self.shape.matrix_parameters)
        )
        gpu["activations, not given back"] = self.not_given_back
        return Stage("save", gpu, host)

    def resume(self) -> Stage:
        """Loading, then state read range by range into what the training keeps."""
        load, kept = self.load(), self.resident()
        gpu, host = dict(kept.gpu), dict(kept.host)
        host["a parameter's state"] = FP32 * self.largest_slice
        full = Stage("resume", gpu, host)
        if (load.gpu_bytes, load.host_bytes) > (full.gpu_bytes, full.host_bytes):
            return Stage("resume", load.gpu, load.host)
        return full

    def _with_fragments(
        self, name: str, gpu: dict[str, float], host: dict[str, float], resident: Stage
    ) -> Stage:
        if self.place.has_gpu:
            gpu["fragmentation"] = FRAGMENTATION * (sum(gpu.values()) - resident.gpu_bytes)
        return Stage(name, gpu, host)
