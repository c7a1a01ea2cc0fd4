"""What does a site say it has labelled, and do the sites agree? Label contracts, and every conflict between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsm_core.classes import ATLAS, ClassInfo, ClassKind, describe_class, normalise_name
from dsm_core.data.datalist import Datalist
from dsm_core.data.fingerprint import Fingerprint


class ContractError(ValueError):
    """A label contract that cannot be read; the message names what was found and what is wanted."""


@dataclass(frozen=True)
class ClassContract:
    """One class of a site: what it is, and in how many cases it is annotated (its evidence)."""

    kind: ClassKind
    host: str | None
    cases: int


@dataclass(frozen=True)
class LabelContract:
    """What leaves a site about its data: classes by name, numbers of cases, and pooled summaries. No case is named.

    Attributes:
        cases: cases that annotate at least one class.
        classes: those that at least one case annotates.
    """

    site: str
    cases: int
    classes: dict[str, ClassContract]
    fingerprint: Fingerprint | None = None

    def evidence(self) -> dict[str, int]:
        """Cases that annotate each class."""
        return {name: held.cases for name, held in self.classes.items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` is its inverse."""
        classes = {n: {"kind": c.kind.value, "host": c.host, "cases": c.cases} for n, c in self.classes.items()}
        fingerprint = self.fingerprint.to_dict() if self.fingerprint else None
        return {"site": self.site, "cases": self.cases, "classes": classes, "fingerprint": fingerprint}

    @classmethod
    def from_dict(cls, content: Any) -> LabelContract:
        """The contract of `to_dict`'s answer, checked.

        Raises:
            ContractError: the content is not a contract.
        """
        try:
            site, cases, fingerprint = content["site"], content["cases"], content.get("fingerprint")
            classes = {name: _read_class(name, held, cases) for name, held in content["classes"].items()}
            if not isinstance(site, str) or not site.strip():
                raise ValueError(f"site {site!r}, wanted a name")
            return cls(site, _count(cases), classes, Fingerprint.from_dict(fingerprint) if fingerprint else None)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ContractError(f"not a label contract: {error}; send the answer of LabelContract.to_dict") from None


def _read_class(name: Any, held: dict[str, Any], cases: int) -> ClassContract:
    if not isinstance(name, str) or not name or name != normalise_name(name):
        raise ValueError(f"class name {name!r}, wanted a name as normalise_name writes it")
    if held["host"] is not None and not isinstance(held["host"], str):
        raise ValueError(f"host {held['host']!r} of {name!r}, wanted a class name")
    if _count(held["cases"]) > _count(cases):
        raise ValueError(f"{held['cases']} cases of {name!r} at a site with {cases} cases")
    return ClassContract(ClassKind(held["kind"]), held["host"], held["cases"])


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"a number of cases {value!r}, wanted at least 1")
    return value


def label_contract(datalist: Datalist, fingerprint: Fingerprint | None = None) -> LabelContract:
    """The contract that a site's data folder gives."""
    evidence = datalist.evidence()
    classes = {
        name: ClassContract(datalist.classes[name].kind, datalist.classes[name].host, evidence[name])
        for name in datalist.labelled_classes
    }
    return LabelContract(datalist.site, len(datalist.annotated_cases), classes, fingerprint)


def contract_classes(contracts: Sequence[LabelContract]) -> tuple[ClassInfo, ...]:
    """Every class of sites that agree, sorted by name; a host that one site declares holds for all."""
    kinds: dict[str, ClassKind] = {}
    hosts: dict[str, str | None] = {}
    for contract in contracts:
        for name, held in contract.classes.items():
            kinds[name], hosts[name] = held.kind, hosts.get(name) or held.host
    return tuple(describe_class(name, kinds[name], hosts[name]) for name in sorted(kinds))


def find_conflicts(contracts: Sequence[LabelContract]) -> list[str]:
    """Why these sites cannot train together: every conflict with the names of its sites; empty where they agree."""
    if not contracts:
        return ["no site has joined; wanted at least one site with a label contract"]
    names = [contract.site for contract in contracts]
    twice = sorted({name for name in names if names.count(name) > 1})
    conflicts = [f"{names.count(name)} sites are called {name!r}; wanted one name a site" for name in twice]
    conflicts += [f"site {c.site} annotates no class; wanted at least one" for c in contracts if not c.classes]
    holders: dict[str, list[tuple[str, ClassContract]]] = defaultdict(list)
    for contract in contracts:
        for name, held in contract.classes.items():
            holders[name].append((contract.site, held))
    for name, held_at in sorted(holders.items()):
        conflicts += _one_meaning(name, held_at) + _known_host(name, held_at, set(holders))
    return conflicts + _one_name(holders)


def _sites_by(values: list[tuple[str, str]]) -> str:
    """`organ at A and B, lesion at C` from (site, value) pairs."""
    groups: dict[str, list[str]] = defaultdict(list)
    for site, value in values:
        groups[value].append(site)
    return ", ".join(f"{value} at {' and '.join(sorted(sites))}" for value, sites in sorted(groups.items()))


def _one_meaning(name: str, held_at: list[tuple[str, ClassContract]]) -> list[str]:
    fix = "declare it alike under `classes` in every dataset.json, or rename one"
    if len({held.kind for _, held in held_at}) > 1:
        return [f"{name!r} is {_sites_by([(site, held.kind.value) for site, held in held_at])}; {fix}"]
    hosts = [(site, held.host) for site, held in held_at if held.host]
    if len({host for _, host in hosts}) > 1:
        return [f"{name!r} is hosted by {_sites_by(hosts)}; {fix}"]
    return []


def _known_host(name: str, held_at: list[tuple[str, ClassContract]], labelled: set[str]) -> list[str]:
    lost = [(site, held.host) for site, held in held_at if held.host and held.host not in labelled | set(ATLAS)]
    fix = "name the host as a site labels it or as dsm_core/classes.py knows it"
    return [
        f"{name!r} lies in an organ that no site labels and the atlas does not know: {_sites_by(lost)}; {fix}"
    ] * bool(lost)


def _one_name(holders: dict[str, list[tuple[str, ClassContract]]]) -> list[str]:
    meanings: dict[str, list[str]] = defaultdict(list)
    for name in sorted(holders):
        meanings[_meaning(name)].append(name)
    said = [
        _sites_by([(site, repr(name)) for name in names for site, _ in holders[name]])
        for names in meanings.values()
        if len(names) > 1
    ]
    return [f"one meaning under several names: {text}; agree on one name" for text in said]


def _word_key(name: str) -> str:
    """Name without word order, hyphens, articles and plural: `kidneys, left` and `left kidney` are alike."""
    words = normalise_name(name).replace("-", " ").replace(",", " ").split()
    return " ".join(sorted(word.removesuffix("s") for word in words if word not in ("of", "the", "in")))


_MEANINGS = {_word_key(phrase): name for name, info in reversed(ATLAS.items()) for phrase in (*info.synonyms, name)}


def _meaning(name: str) -> str:
    return _MEANINGS.get(_word_key(name), _word_key(name))
