"""Kinds of questions. Each is a function (graph, templates, choose, count) -> pairs, in a file of its own.

`count`: pairs for each thing that the kind asks about (a fact, an entity, two entities); fewer where the
templates or the graph have fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from medsft.knowledge.choice import Chooser
from medsft.knowledge.graph import Graph
from medsft.knowledge.kinds.comparison import comparison
from medsft.knowledge.kinds.medication import medication
from medsft.knowledge.kinds.reverse import reverse
from medsft.knowledge.kinds.several import several
from medsft.knowledge.kinds.single import single
from medsft.knowledge.kinds.vignette import vignette
from medsft.knowledge.kinds.yes_no import yes_no
from medsft.knowledge.pair import Pair
from medsft.knowledge.templates import Templates

Kind = Callable[[Graph, Templates, Chooser, int], Iterator[Pair]]

KINDS: dict[str, Kind] = {
    "single": single,
    "several": several,
    "reverse": reverse,
    "comparison": comparison,
    "yes_no": yes_no,
    "vignette": vignette,
    "medication": medication,
}
