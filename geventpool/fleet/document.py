"""All that is known of a cap in one document: for stores that can compare and swap, and no more.

Pure, but for the random name of an epoch.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from geventpool.backoff import Backoff
from geventpool.fleet.share import Grant, Record, Report, grant

__all__ = ["AGAIN", "PER_SECOND", "Document"]

#: After another has written in between: those that meet would meet again else, and the more of them
#: there are, and the slower the store is, the more often.
AGAIN = Backoff(first=0.02, longest=0.5, jitter=1.0)
#: So many renewals in a second all processes of a cap together make at most, or they would do
#: little but meet.
PER_SECOND = 40.0


@dataclass(frozen=True)
class Document:
    """The records of a cap, and until when they are not all known again."""

    learns_until: float
    epoch: str = field(default_factory=lambda: uuid.uuid4().hex)
    records: Mapping[str, Record] = field(default_factory=dict)

    def renewed(self, report: Report, now: float) -> tuple[Grant, Document]:
        """What the process that reports may have, and the document then."""
        share, records = grant(self.records, report, now, learns_until=self.learns_until)
        others = [each for id, each in records.items() if id != report.id]
        members = 1 + sum(now < each.expires for each in others)
        answer = Grant(share, members, self.epoch, records[report.id].place)
        return answer, Document(self.learns_until, self.epoch, records)

    def without(self, id: str) -> Document:
        """The document with that process forgotten."""
        kept = {other: each for other, each in self.records.items() if other != id}
        return Document(self.learns_until, self.epoch, kept)

    def dump(self) -> bytes:
        """As text; ``load`` reads it."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def load(cls, text: bytes) -> Document:
        """Raises ValueError, KeyError or TypeError for what ``dump`` has not written."""
        found = json.loads(text)
        records = {id: Record(**each) for id, each in found["records"].items()}
        return cls(found["learns_until"], found["epoch"], records)
