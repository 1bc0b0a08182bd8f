"""Prompt templates: query and history -> the text before [gMASK].

| name | one turn | with history |
| --- | --- | --- |
| `chatglm` | `{q}` | `[Round 0]\\n问：{q0}\\n答：{a0}\\n[Round 1]\\n问：{q}\\n答：` |
| `med-chatglm` | `问题：{q}\\n回答: ` | `问题：{q0}\\n回答: {a0}\\n问题：{q}\\n回答: ` |
| `none` | `{q}` | `{q0}\\n{a0}\\n{q}` |

`chatglm` is what the released `chat()` writes; rounds count from 0. `med-chatglm` is the form of
Med-ChatGLM's training data; a question already in that form is left as it is.
"""

from collections.abc import Callable, Iterable

from medsft.data.records import Example
from medsft.errors import UserError

History = tuple[tuple[str, str], ...]

AUTO = "auto"
"""Template name that stands for what `detect_template` finds in the training data."""

_MED_BEFORE, _MED_AFTER = "问题：", "\n回答: "


def is_med_question(query: str) -> bool:
    """Whether a question is written in Med-ChatGLM's form."""
    is_long_enough = len(query) >= len(_MED_BEFORE) + len(_MED_AFTER)
    return is_long_enough and query.startswith(_MED_BEFORE) and query.endswith(_MED_AFTER)


def med_question(query: str) -> str:
    """The question in Med-ChatGLM's form, in which it may be already."""
    return query if is_med_question(query) else f"{_MED_BEFORE}{query}{_MED_AFTER}"


def bare_question(query: str) -> str:
    """The question without Med-ChatGLM's form around it."""
    return query[len(_MED_BEFORE) : -len(_MED_AFTER)] if is_med_question(query) else query


def _chatglm(query: str, history: History) -> str:
    if not history:
        return query
    rounds = [f"[Round {i}]\n问：{old}\n答：{answer}\n" for i, (old, answer) in enumerate(history)]
    return "".join(rounds) + f"[Round {len(history)}]\n问：{query}\n答："


def _med_chatglm(query: str, history: History) -> str:
    rounds = [f"{med_question(old)}{answer}\n" for old, answer in history]
    return "".join(rounds) + med_question(query)


def _none(query: str, history: History) -> str:
    return "".join(f"{old}\n{answer}\n" for old, answer in history) + query


TEMPLATES: dict[str, Callable[[str, History], str]] = {
    "chatglm": _chatglm,
    "med-chatglm": _med_chatglm,
    "none": _none,
}


def check_template(name: str) -> None:
    """Raise UserError unless `name` is a template or "auto"."""
    if name != AUTO and name not in TEMPLATES:
        raise UserError(
            f"The prompt template {name!r} is not known; give one of {', '.join([AUTO, *TEMPLATES])}."
        )


def render(template: str, query: str, history: History = ()) -> str:
    """The prompt of `query` after `history` (oldest first) under the template of that name."""
    return TEMPLATES[template](query, history)


def detect_template(examples: Iterable[Example]) -> str:
    """The template that fits the training data, for the flag value "auto".

    "med-chatglm" when there is an example and every question is written in that form already, else
    "chatglm". Give it the first examples only: one that does not fit is enough to tell.
    """
    queries = [example.query for example in examples]
    fits = bool(queries) and all(map(is_med_question, queries))
    return "med-chatglm" if fits else "chatglm"
