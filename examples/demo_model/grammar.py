"""The paraphrase grammar: a set of triples in, English that names every entity of it out.

`verbalise` plans (merge objects or subjects, group by subject, order), then realises each group as one or more
sentences (apposition, relative clause, coordination, pronouns), with phrasings from `templates`. Deterministic:
every choice comes from one generator keyed by the seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from obverse.engine.records.keys import derive_seed
from obverse.engine.records.linearise import Triple

from .templates import RELATIONS, ROLES, Phrases

__all__ = ["Fact", "entities_of", "kind_of", "phrases_for", "verbalise"]

_NUMBER = re.compile(r"<([^|<>]*)\|([^|<>]*)>")
_OBJECT_NUMBER = re.compile(r"\{([^|{}]*)\|([^|{}]*)\}")
_SLOT = re.compile(r"\{(s|o|ao|kind|its)\}('s)?")
_OPENERS = ("Moreover, ", "In addition, ", "Also, ", "Furthermore, ", "Besides, ", "As it happens, ", "In fact, ")
_NO_FRONTING = ("whose", "where", "which", "{o}")
_ARTICLE_NAMES = frozenset(
    {
        "Bahamas", "Central African Republic", "Comoros", "Czech Republic", "Democratic Republic of the Congo",
        "Dominican Republic", "Gambia", "Isle of Man", "Maldives", "Netherlands", "Philippines",
        "Republic of the Congo", "Seychelles", "United Arab Emirates", "United Kingdom", "United States", "Vatican",
    }
)  # fmt: skip
_GENERIC = Phrases(
    verbs=("<has|have> {o} as {its} {rel}", "<is|are> linked to {o} by the relation of {rel}"),
    nouns=("whose {rel} is {o}",),
    wholes=("{s}'s {rel} is {o}", "the {rel} of {s} is {o}", "{o} is the {rel} of {s}"),
)


@dataclass(frozen=True)
class Fact:
    """One clause's worth of meaning: every subject has the relation to every object."""

    subjects: tuple[str, ...]
    relation: str
    objects: tuple[str, ...]


def phrases_for(relation: str) -> Phrases:
    """The table's phrasings of ``relation``; a relation that is not in the table gets plain ones with its name."""
    if relation in RELATIONS:
        return RELATIONS[relation]
    return Phrases(*(tuple(t.replace("{rel}", relation) for t in part) for part in _GENERIC))


def entities_of(triples: Iterable[Triple]) -> list[str]:
    """The distinct subject and object names in order of appearance."""
    return list(dict.fromkeys(name for t in triples for name in (t.subject, t.object)))


def kind_of(name: str, triples: Iterable[Triple]) -> str:
    """A noun for ``name`` as far as the triples tell: country, city, its class, region, else place."""
    seen = set()
    for subject, relation, obj in triples:
        roles = ROLES.get(relation, ("place", "place"))
        if name == subject:
            if relation == "instance of" and re.fullmatch(r"[A-Za-z]+(?: [a-z]+){0,2}", obj):
                return obj.lower()
            seen.add(roles[0])
        if name == obj:
            seen.add(roles[1])
    return next((kind for kind in ("country", "city", "region") if kind in seen), "place")


def verbalise(triples: Sequence[Triple], seed: int) -> str:
    """One paraphrase of ``triples`` as English text; every entity is named verbatim; same arguments, same text."""
    rng = random.Random(derive_seed(seed, "verbalise"))
    writer = _Writer(list(dict.fromkeys(triples)), rng)
    return writer.write()


def _choose(rng: random.Random, options: Sequence[str]) -> str:
    return options[rng.randrange(len(options))]


def _join(names: Sequence[str], rng: random.Random) -> str:
    if len(names) <= 1:
        return "".join(names)
    if len(names) == 2:
        return f"{names[0]} and {names[1]}"
    comma = "," if rng.random() < 0.3 else ""
    return f"{', '.join(names[:-1])}{comma} and {names[-1]}"


def _with_article(name: str) -> str:
    first = name[:1].lower()
    return f"an {name}" if first in "aeio" or name.lower().startswith(("un", "um", "ur")) else f"a {name}"


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


class _Writer:
    """The state of one paraphrase: the triples, the generator, and who was named last."""

    def __init__(self, triples: list[Triple], rng: random.Random) -> None:
        self.triples, self.rng = triples, rng
        self.kinds = {name: kind_of(name, triples) for name in entities_of(triples)}
        self.topic: tuple[str, ...] = ()  # the subjects of the last sentence

    # --- planning ---------------------------------------------------------------------------------------------

    def write(self) -> str:
        """Plan, realise, and join the sentences."""
        groups = self._groups()
        sentences: list[str] = []
        while groups:
            subjects, facts = groups.pop(0)
            while facts:
                taken = facts[: self._chunk(len(facts))]
                facts = facts[len(taken) :]
                sentence = self._sentence(subjects, taken, first=not sentences)
                if not facts and groups:
                    sentence = self._chain(sentence, taken[-1], groups)
                sentences.append(sentence if sentence.endswith(".") else sentence + ".")
                self.topic = subjects
            groups = [group for group in groups if group[1]]
        return " ".join(sentences)

    def _chunk(self, n: int) -> int:
        draw = self.rng.random()
        return min(n, 1 if draw < 0.3 else 2 if draw < 0.75 else 3)

    def _groups(self) -> list[tuple[tuple[str, ...], list[Fact]]]:
        grouped: dict[tuple[str, ...], list[Fact]] = {}
        for fact in self._merge_subjects(self._merge_objects()):
            grouped.setdefault(fact.subjects, []).append(fact)
        groups = list(grouped.items())
        for _, facts in groups:
            if self.rng.random() < 0.35:
                self.rng.shuffle(facts)
        if self.rng.random() < 0.25:
            self.rng.shuffle(groups)
        return groups

    def _merge_objects(self) -> list[Fact]:
        merged: dict[tuple[str, str], list[str]] = {}
        separate: list[Fact] = []
        split = self.rng.random() < 0.25  # now and then keep the objects of one relation apart
        for subject, relation, obj in self.triples:
            if split:
                separate.append(Fact((subject,), relation, (obj,)))
            else:
                merged.setdefault((subject, relation), []).append(obj)
        return separate or [Fact((s,), r, tuple(objects)) for (s, r), objects in merged.items()]

    def _merge_subjects(self, facts: list[Fact]) -> list[Fact]:
        out: list[Fact] = []
        for fact in facts:
            twin = next(
                (i for i, f in enumerate(out) if (f.relation, f.objects) == (fact.relation, fact.objects)), None
            )
            if twin is None or fact.relation in ("capital", "capital of") or self.rng.random() < 0.4:
                out.append(fact)
            else:
                out[twin] = replace(out[twin], subjects=out[twin].subjects + fact.subjects)
        return out

    # --- sentences --------------------------------------------------------------------------------------------

    def _sentence(self, subjects: tuple[str, ...], facts: list[Fact], *, first: bool) -> str:
        rng = self.rng
        opener = "" if first or rng.random() < 0.85 else _choose(rng, _OPENERS)
        one = len(subjects) == 1
        if len(facts) == 1:
            body = self._whole(facts[0]) if rng.random() < 0.5 else self._plain(subjects, facts)
        elif one and rng.random() < 0.6:
            body = self._apposed(subjects, facts)
        elif one and rng.random() < 0.4:
            body = self._two_clauses(subjects, facts)
        else:
            body = self._plain(subjects, facts)
        return self._finish(body, opener)

    def _finish(self, body: str, opener: str) -> str:
        # A name stays as it is written, even at the head of a sentence: only our own words are capitalised.
        if any(body.startswith(name) for name in self.kinds):
            return opener + body
        return opener + body if opener else _capitalise(body)

    def _plain(self, subjects: tuple[str, ...], facts: list[Fact]) -> str:
        phrases = [self._verb(f) for f in facts]
        return f"{self._subject(subjects)} {self._coordinate(phrases, facts)}"

    def _coordinate(self, phrases: list[str], facts: list[Fact]) -> str:
        if len(phrases) == 1:
            return phrases[0]
        heavy = any(len(f.objects) > 1 for f in facts[:-1])
        if len(phrases) == 2:
            return f"{phrases[0]}{',' if heavy else ''} and {phrases[1]}"
        return f"{', '.join(phrases[:-1])}{',' if heavy or self.rng.random() < 0.5 else ''} and {phrases[-1]}"

    def _apposed(self, subjects: tuple[str, ...], facts: list[Fact]) -> str:
        """Apposition, before or after the name, or a relative clause, then the other facts."""
        rng = self.rng
        head, rest = facts[0], facts[1:]
        verbs = self._coordinate([self._verb(f) for f in rest], rest)
        if rng.random() < 0.3:
            return f"{self._subject(subjects, full=True)}, which {self._verb(head)}, {verbs}"
        template = _choose(rng, phrases_for(head.relation).nouns)
        aside = self._fill(template, head)
        if rng.random() < 0.4 and not template.startswith(_NO_FRONTING):
            return f"{aside}, {self._subject(subjects, full=True)} {verbs}"
        return f"{self._subject(subjects, full=True)}, {aside}, {verbs}"

    def _two_clauses(self, subjects: tuple[str, ...], facts: list[Fact]) -> str:
        rng = self.rng
        link = _choose(rng, ("; it", ", and it", ", while it", " and it also"))
        tail = self._coordinate([self._verb(f) for f in facts[1:]], facts[1:])
        return f"{self._plain(subjects, facts[:1])}{link} {tail}"

    def _whole(self, fact: Fact) -> str:
        options = [
            t
            for t in phrases_for(fact.relation).wholes
            if len(fact.subjects) == 1 or ("{s}'s" not in t and "{s}," not in t)
        ]
        template = _choose(self.rng, options)
        return self._fill(template, fact)

    def _chain(self, sentence: str, last: Fact, groups: list[tuple[tuple[str, ...], list[Fact]]]) -> str:
        """Hang a fact about the sentence's last name on it: "..., which uses the Euro"."""
        subjects, facts = groups[0]
        name = subjects[0]
        ends_here = len(subjects) == 1 and len(last.objects) == 1 and sentence.endswith(f" {name}")
        if not ends_here or self.rng.random() < 0.45:
            return sentence
        fact = facts.pop(0)
        if self.rng.random() < 0.5:
            return f"{sentence}, {self._fill(_choose(self.rng, phrases_for(fact.relation).nouns), fact)}"
        return f"{sentence}, which {self._verb(fact)}"

    # --- phrases ----------------------------------------------------------------------------------------------

    def _verb(self, fact: Fact) -> str:
        return self._fill(_choose(self.rng, phrases_for(fact.relation).verbs), fact)

    def _subject(self, subjects: tuple[str, ...], *, full: bool = False) -> str:
        """The name, or, when it was the subject of the sentence before, a pronoun or description."""
        rng = self.rng
        if not full and subjects == self.topic and rng.random() < 0.75:
            if len(subjects) > 1:
                return _choose(rng, ("they", "both" if len(subjects) == 2 else "all of them"))
            return "it" if rng.random() < 0.6 else f"the {self.kinds[subjects[0]]}"
        return _join([self._name(n) for n in subjects], rng)

    def _name(self, name: str) -> str:
        if self.kinds[name] not in ("country", "region", "place"):
            return name
        takes = name in _ARTICLE_NAMES or (name.startswith(("United ",)) or name.endswith((" Islands", " Emirates")))
        return f"the {name}" if takes and not name.lower().startswith("the ") else name

    def _fill(self, template: str, fact: Fact) -> str:
        """Put names and numbers into a template; pronouns for subjects that the sentence before was about."""
        many_subjects, many_objects = len(fact.subjects) > 1, len(fact.objects) > 1
        text = _NUMBER.sub(lambda m: m[2] if many_subjects else m[1], template)
        text = _OBJECT_NUMBER.sub(lambda m: m[2] if many_objects else m[1], text)
        known = fact.subjects == self.topic and self.rng.random() < 0.6
        kind = self.kinds[fact.subjects[0]]

        def slot(match: re.Match[str]) -> str:
            key, owns = match[1], match[2] or ""
            if key == "s" and known:
                description = "them" if many_subjects else f"the {kind}"
                if owns:
                    return "their" if many_subjects else "its"
                if match.start() == 0:
                    return "they" if many_subjects else "it" if self.rng.random() < 0.5 else description
                return description
            if key == "kind":
                return kind
            if key == "its":
                return "their" if many_subjects else "its"
            names = fact.subjects if key == "s" else fact.objects
            bare = f"the {{{key}}}" in text  # the template has the article already
            shown = [_with_article(n) if key == "ao" else n if bare else self._name(n) for n in names]
            return _join(shown, self.rng) + owns

        text = _SLOT.sub(slot, text)
        return _fix_article(text, kind)


def _fix_article(text: str, kind: str) -> str:
    """ "a island" written as "an island" where the kind noun begins with a vowel sound."""
    if kind[:1] in "aeio" and text.startswith(f"a {kind}"):
        return "an" + text[1:]
    return text
