"""Prompt forms, read from a YAML file (`prompts.yaml` explains it), filled with an entity's facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsft.errors import UserError
from medsft.knowledge.graph import Entity
from medsft.knowledge.texts_file import in_braces, placeholders_in, read_texts

DEFAULT_PROMPTS = Path(__file__).with_name("prompts.yaml")
_PLACEHOLDERS = {"entity", "knowledge", "count"}


@dataclass(frozen=True)
class Prompts:
    """Attributes:
    system: what the model is told first.
    forms: name -> text with {entity}, {knowledge}, {count}.
    """

    system: str
    forms: Mapping[str, str]

    def chosen(self, names: Sequence[str]) -> Prompts:
        """Only some of the forms; all where none is named. Raises `UserError` for unknown ones."""
        unknown = [name for name in names if name not in self.forms]
        if unknown:
            raise UserError(
                f"The prompt forms are {', '.join(self.forms)}; {', '.join(unknown)} was asked for."
            )
        return Prompts(self.system, {name: self.forms[name] for name in names or self.forms})

    def messages(self, form: str, entity: Entity, count: int) -> list[dict[str, str]]:
        """The conversation to send."""
        knowledge = "\n".join(f"{relation}：{'、'.join(values)}" for relation, values in entity.facts)
        text = self.forms[form].format(entity=entity.name, knowledge=knowledge, count=count)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": text}]


def load_prompts(path: Path = DEFAULT_PROMPTS) -> Prompts:
    """Reads and checks a file of prompts; raises `UserError` that names file and entry."""
    content = read_texts(path, "prompt file")
    if not isinstance(content, dict) or content.keys() != {"system", "forms"}:
        raise UserError(
            f"The prompt file {path} must hold system and forms; {DEFAULT_PROMPTS} shows the form."
        )
    forms = content["forms"]
    if not isinstance(content["system"], str) or not isinstance(forms, dict) or not forms:
        raise UserError(f"The prompt file {path}: system must be a text and forms names with texts.")
    for name, text in forms.items():
        if not isinstance(text, str):
            raise UserError(
                f"The prompt file {path}, form {name} must be a text; it is a {type(text).__name__}."
            )
        try:
            found = placeholders_in(text)
        except ValueError as error:
            raise UserError(f"The prompt file {path}, form {name}: {error}.") from error
        if found != _PLACEHOLDERS:
            raise UserError(
                f"The prompt file {path}, form {name} must hold {in_braces(_PLACEHOLDERS)} and nothing else "
                "in braces."
            )
    return Prompts(content["system"], {str(name): text for name, text in forms.items()})
