"""The paraphrase tables: how each relation of the geography graph may be said.

Every relation has three lists:

- ``verbs``: a verb phrase without its subject. Joined by "and", put behind "which", or behind a name or pronoun.
- ``nouns``: a noun phrase that can stand beside the subject ("Lyon, a city in France, ...").
- ``wholes``: a whole sentence without its full stop, in any order of subject and object.

Notation: ``{s}`` and ``{o}`` are the subject and the object (or a list "A, B and C"); ``{ao}`` is the object with
"a" or "an"; ``{kind}`` is a noun for the subject ("city", "country", "region", "place"); ``<one|many>`` is chosen by
the number of subjects, ``{one|many}`` by the number of objects. ``{s}'s`` becomes "its" where a pronoun is used.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["RELATIONS", "ROLES", "Phrases"]


class Phrases(NamedTuple):
    """The phrasings of one relation, by the part they can play in a sentence."""

    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    wholes: tuple[str, ...]


# What the place of an entity in a relation tells about it; "place" tells nothing.
ROLES: dict[str, tuple[str, str]] = {
    "country": ("city", "country"),
    "capital": ("country", "city"),
    "capital of": ("city", "country"),
    "continent": ("country", "continent"),
    "shares border with": ("country", "country"),
    "currency": ("country", "currency"),
    "language used": ("country", "language"),
    "located in time zone": ("city", "time zone"),
    "located in the administrative territorial entity": ("city", "region"),
    "contains the administrative territorial entity": ("country", "region"),
    "part of": ("region", "region"),
    "instance of": ("region", "class"),
    "top-level Internet domain": ("country", "domain"),
}

RELATIONS: dict[str, Phrases] = {
    "country": Phrases(
        verbs=(
            "<is|are> in {o}",
            "<lies|lie> in {o}",
            "<is|are> located in {o}",
            "<is|are> situated in {o}",
            "<belongs|belong> to {o}",
            "<can|can> be found in {o}",
            "<is|are> within the borders of {o}",
        ),
        nouns=("a {kind} in {o}", "a {kind} of {o}", "located in {o}", "situated in {o}"),
        wholes=(
            "the country of {s} is {o}",
            "in {o} <lies|lie> {s}",
            "{o} is home to {s}",
            "{o} is the country where {s} <is|are> located",
            "one finds {s} in {o}",
            "{o} has {s} on its territory",
            "the country that {s} <belongs|belong> to is {o}",
        ),
    ),
    "capital": Phrases(
        verbs=(
            "<has|have> {o} as {its} capital",
            "<is|are> governed from {o}",
            "<has|have> {its} capital in {o}",
            "<has|have> {its} seat of government in {o}",
            "<counts|count> {o} as {its} capital city",
        ),
        nouns=("whose capital is {o}", "with its capital at {o}", "a country with {o} as its capital"),
        wholes=(
            "{s}'s capital is {o}",
            "{o} is the capital of {s}",
            "the capital of {s} is {o}",
            "the capital city of {s} is called {o}",
            "{o} serves as the capital of {s}",
            "{o} is where the government of {s} sits",
            "as its capital, {s} <has|have> {o}",
        ),
    ),
    "capital of": Phrases(
        verbs=(
            "<is|are> the capital of {o}",
            "<serves|serve> as the capital of {o}",
            "<is|are> the capital city of {o}",
            "<is|are> the seat of government of {o}",
            "<functions|function> as capital of {o}",
        ),
        nouns=("the capital of {o}", "capital of {o}", "the capital city of {o}", "{o}'s capital"),
        wholes=(
            "{o} has {s} as its capital",
            "{o}'s capital is {s}",
            "{o} is governed from {s}",
            "the capital of {o} is {s}",
            "the government of {o} sits in {s}",
            "as its capital, {o} has {s}",
            "the role of capital of {o} belongs to {s}",
        ),
    ),
    "continent": Phrases(
        verbs=(
            "<is|are> in {o}",
            "<lies|lie> on the continent of {o}",
            "<belongs|belong> to the continent of {o}",
            "<is|are> located in {o}",
            "<is|are> part of the continent of {o}",
            "<is|are> counted as part of {o}",
        ),
        nouns=("a country in {o}", "a country on the continent of {o}", "located in {o}", "a state in {o}"),
        wholes=(
            "the continent of {s} is {o}",
            "{s}'s continent is {o}",
            "{o} is the continent where {s} <lies|lie>",
            "on the continent of {o} <lies|lie> {s}",
            "{o} includes {s}",
            "in {o} one finds {s}",
            "the continent on which {s} <lies|lie> is {o}",
        ),
    ),
    "shares border with": Phrases(
        verbs=(
            "<borders|border> {o}",
            "<shares|share> a border with {o}",
            "<is|are> next to {o}",
            "<has|have> a common border with {o}",
            "<touches|touch> {o}",
            "<adjoins|adjoin> {o}",
            "<is|are> bordered by {o}",
        ),
        nouns=("a neighbour of {o}", "bordered by {o}", "next to {o}", "which shares a border with {o}"),
        wholes=(
            "{o} {borders|border} {s}",
            "{o} {shares|share} a border with {s}",
            "{o} {is|are} among the neighbours of {s}",
            "among {s}'s neighbours {is|are} {o}",
            "there is a border between {s} and {o}",
            "the neighbours of {s} include {o}",
            "{o} and {s} are neighbours",
        ),
    ),
    "currency": Phrases(
        verbs=(
            "<uses|use> the {o}",
            "<pays|pay> in {o}",
            "<has|have> the {o} as {its} currency",
            "<uses|use> the {o} as {its} currency",
            "<has|have> adopted the {o}",
            "<issues|issue> prices in {o}",
        ),
        nouns=("whose currency is the {o}", "where people pay in {o}", "a country that uses the {o}"),
        wholes=(
            "{s}'s currency is the {o}",
            "the currency of {s} is the {o}",
            "in {s}, people pay in {o}",
            "the {o} {is|are} the currency of {s}",
            "the {o} {is|are} used in {s}",
            "the money of {s} is the {o}",
            "prices in {s} are given in {o}",
            "the {o} {serves|serve} as legal tender in {s}",
        ),
    ),
    "language used": Phrases(
        verbs=(
            "<uses|use> {o}",
            "<has|have> speakers of {o}",
            "<counts|count> {o} among {its} languages",
            "<has|have> {o} as {a language|languages}",
            "<is|are> home to speakers of {o}",
        ),
        nouns=(
            "where {o} {is|are} spoken",
            "a country where people speak {o}",
            "home to speakers of {o}",
        ),
        wholes=(
            "in {s}, people speak {o}",
            "{o} {is|are} spoken in {s}",
            "{o} {is a language|are languages} of {s}",
            "people in {s} speak {o}",
            "the languages of {s} include {o}",
            "one hears {o} in {s}",
            "{o} {is|are} used in {s}",
            "{s}'s people speak {o}",
        ),
    ),
    "located in time zone": Phrases(
        verbs=(
            "<is|are> in the {o} time zone",
            "<keeps|keep> {o} time",
            "<observes|observe> {o} time",
            "<follows|follow> the time zone {o}",
            "<uses|use> the {o} time zone",
            "<sets|set> {its} clocks to {o}",
            "<runs|run> on {o} time",
        ),
        nouns=("on {o} time", "in the {o} time zone", "a {kind} on {o} time"),
        wholes=(
            "{s}'s time zone is {o}",
            "the time zone of {s} is {o}",
            "clocks in {s} follow {o}",
            "the time in {s} is that of {o}",
            "in {s}, clocks show {o} time",
            "local time in {s} follows the {o} zone",
            "the {o} time zone covers {s}",
        ),
    ),
    "located in the administrative territorial entity": Phrases(
        verbs=(
            "<is|are> in {o}",
            "<lies|lie> in {o}",
            "<is|are> located in {o}",
            "<belongs|belong> to {o}",
            "<is|are> administered by {o}",
            "<falls|fall> within {o}",
            "<sits|sit> within {o}",
        ),
        nouns=("a {kind} in {o}", "located in {o}", "a {kind} within {o}", "a part of {o}"),
        wholes=(
            "{o} contains {s}",
            "{o} includes {s}",
            "{o} administers {s}",
            "in {o} <lies|lie> {s}",
            "within {o} one finds {s}",
            "the administrative unit of {s} is {o}",
            "{s}'s administrative area is {o}",
        ),
    ),
    "contains the administrative territorial entity": Phrases(
        verbs=(
            "<contains|contain> {o}",
            "<includes|include> {o}",
            "<is|are> divided into units such as {o}",
            "<has|have> {o} among {its} subdivisions",
            "<administers|administer> {o}",
            "<comprises|comprise> {o}",
        ),
        nouns=("home to {o}", "which includes {o}", "with {o} among its subdivisions"),
        wholes=(
            "{o} {is|are} in {s}",
            "{o} {lies|lie} in {s}",
            "{o} {is a subdivision|are subdivisions} of {s}",
            "{o} {is an administrative unit|are administrative units} of {s}",
            "{o} {belongs|belong} to {s}",
            "among {s}'s subdivisions {is|are} {o}",
            "within {s} {lies|lie} {o}",
        ),
    ),
    "part of": Phrases(
        verbs=(
            "<is|are> part of {o}",
            "<belongs|belong> to {o}",
            "<forms|form> part of {o}",
            "<is|are> included in {o}",
            "<makes|make> up part of {o}",
            "<is|are> within {o}",
        ),
        nouns=("part of {o}", "a part of {o}", "a {kind} of {o}"),
        wholes=(
            "{o} includes {s}",
            "{o} has {s} as a part",
            "{s}'s place is within {o}",
            "the larger unit that {s} <belongs|belong> to is {o}",
            "one part of {o} is {s}",
            "{o} takes in {s}",
            "{s} and its surroundings are part of {o}",
        ),
    ),
    "instance of": Phrases(
        verbs=(
            "<is|are> {ao}",
            "<is|are> classed as {ao}",
            "<is|are> known as {ao}",
            "<has|have> the status of {ao}",
            "<counts|count> as {ao}",
            "<is|are> described as {ao}",
        ),
        nouns=("{ao}", "known as {ao}", "classed as {ao}"),
        wholes=(
            "{s}'s type is {o}",
            "the status of {s} is that of {ao}",
            "the kind of place that {s} <is|are> is {ao}",
            "one may call {s} {ao}",
            "the word for {s} is {o}",
            "people call {s} {ao}",
            "the term for {s} is {o}",
        ),
    ),
    "top-level Internet domain": Phrases(
        verbs=(
            "<uses|use> the Internet domain {o}",
            "<has|have> the top-level domain {o}",
            "<goes|go> by {o} on the Internet",
            "<owns|own> the domain {o}",
            "<ends|end> {its} web addresses in {o}",
        ),
        nouns=("whose Internet domain is {o}", "known on the Internet as {o}", "the country behind {o}"),
        wholes=(
            "{s}'s Internet domain is {o}",
            "{s}'s top-level domain is {o}",
            "the top-level Internet domain of {s} is {o}",
            "web addresses in {s} end in {o}",
            "websites from {s} use {o}",
            "the domain {o} belongs to {s}",
            "the Internet ending {o} stands for {s}",
        ),
    ),
}
