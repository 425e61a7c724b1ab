"""Which nodes may work: each is asked once for what a search needs, before it gets any work; nodes that join later, too."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from nas_attn.work import Done, Task

Judge = Callable[[Done], str | None]
"""What is wrong with a node, from its answer; None if nothing is."""
DEADLINE_S = 1800.0
MARK = "node/"
"""How the keys of the questions begin: nobody else waits for their answers."""


@dataclass(slots=True)
class Admission:
    """Remembers what each node has answered, by the node's identity."""

    question: tuple[str, str, Judge] | None = None
    reasons: dict[str, str | None] = field(default_factory=dict)
    memory_mib: dict[str, float] = field(default_factory=dict)
    """Free memory of one GPU of a node, where it has any."""

    def task(self, node: str) -> Task | None:
        """The question for a node that was not asked yet."""
        if self.question is None or node in self.reasons:
            return None
        return Task(f"{MARK}{node}", *self.question[:2], deadline_s=DEADLINE_S)

    def hear(self, node: str, answer: str | None, lost: str | None) -> str | None:
        """Remembers a node's answer, or why there is none; says what is wrong with the node."""
        if self.question is None:
            return None
        memory = json.loads(answer).get("memory_mib") if answer is not None else None
        if memory:
            self.memory_mib[node] = float(memory)
        self.reasons[node] = self.question[2](Done(f"{MARK}{node}", answer, lost))
        return self.reasons[node]

    def barred(self, node: str) -> bool:
        """Whether a node was asked and lacks something."""
        return self.reasons.get(node) is not None

    def complaints(self) -> list[str]:
        """What is wrong with nodes, each thing once."""
        return sorted({reason for reason in self.reasons.values() if reason is not None})
