"""Prompt forms, read from a YAML file (`prompts.yaml` explains it), filled with an entity's facts."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from medsft.errors import UserError
from medsft.knowledge.graph import Entity

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
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"The prompt file {path} cannot be read as YAML: {error}.") from error
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
            found = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
        except ValueError as error:
            raise UserError(f"The prompt file {path}, form {name}: a stray brace ({error}).") from error
        if found != _PLACEHOLDERS:
            wanted = ", ".join(f"{{{field}}}" for field in sorted(_PLACEHOLDERS))
            raise UserError(
                f"The prompt file {path}, form {name} must hold {wanted} and nothing else in braces."
            )
    return Prompts(content["system"], {str(name): text for name, text in forms.items()})
