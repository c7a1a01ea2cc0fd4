"""Was an audit log changed? Every sign of it, told apart from the traces that a crash leaves."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.audit_records import Head, read_record


@dataclass(frozen=True)
class Verdict:
    """What was found in a log.

    Attributes:
        faults: signs of tampering, or of a damaged disk. notes: traces of a crash, which are none.
    """

    head: Head
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_intact(self) -> bool:
        return not self.faults


def examine(content: bytes, stated: Head | None, expected: Head | None = None) -> Verdict:
    """What a log's bytes tell.

    Args:
        stated: what the head file says. expected: an end of this log that was noted elsewhere, now or earlier.
    """
    *lines, rest = content.split(b"\n")
    faults, before = [], Head()
    ends = {before.records: before.hash}
    for place, line in enumerate(lines, start=1):
        record = read_record(line)
        if record is None:
            faults.append(f"line {place} is no record, or was edited")
            before = Head(before.records + 1, "")
            continue
        if record["number"] != before.records + 1:
            faults.append(
                f"line {place} holds record {record['number']} after record {before.records}: "
                "records are missing, doubled or moved"
            )
        elif before.hash and record["previous"] != before.hash:
            faults.append(
                f"record {record['number']} does not follow the record before it: one of the two was replaced"
            )
        before = Head(record["number"], record["hash"])
        ends[before.records] = before.hash
    notes = [f"{len(rest)} bytes of a record that a crash cut off; the next record drops them"] if rest else []
    last = len(lines)
    if stated is None and last > 1:
        faults.append("the head file is missing, so records cut off at the end would not be noticed")
    if stated is not None and last == stated.records + 1:
        notes.append("the head is one record behind, as a crash leaves it; the next record corrects it")
    elif stated is not None and last > stated.records:
        faults.append(f"the log holds {last} records, its head states {stated.records}: one of the two was replaced")
    for end, source in ((stated, "its head"), (expected, "the end noted elsewhere")):
        if end is not None and end.records > last:
            faults.append(f"{source} names record {end.records} and the log ends with {last}: records were cut off")
        elif end is not None and ends.get(end.records) != end.hash:
            faults.append(f"record {end.records} is not the one that {source} names: the log was written anew")
    return Verdict(before, tuple(faults), tuple(notes))
