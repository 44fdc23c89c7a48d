"""Invented names: what forces the model to copy from its prompt instead of remembering the graph."""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["invent", "make_syllable_word"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ONSETS = _words(
    "b br c ch cl d dr f fl g gh gl gr h j k kh kl kr l ll m mb n nd ng ny p ph pl pr q qu r rh s sch sh sk sl sm sn "
    "sp st str sv sz t th tr ts tz v vl w wh x y z zh ç đ ğ ł ñ ř ș š ş ţ ž ż"
)
_VOWELS = _words(
    "a a a e e e i i i o o o u u y aa ae ai au ay ea ee ei eu ia ie io oa oe oi oo ou ue ui á à â ä ã å ā ă ą é è ê "
    "ë ē ė ę í ì î ï ī ı ó ò ô ö õ ø ō ő ú ù û ü ū ů ű ý æ œ ơ ư ạ ế ồ"
)
_CODAS = ("",) * 5 + _words("b ck d f g k l ll lm lt m n nd ng nn nt p r rd rk rn rs rt s ss st t th tz v x z")
_HEADS = _words(
    "New Old Saint St. San Santa São Santo Upper Lower North South East West Great Little El La Le Les Los Las Al Bad "
    "Villa Fort Port Mount Lake Ban Nova Nowa Novo Stara Dolní Horní Nagy Kis Ciudad Puerto Monte Ash Kampung Desa Wat"
)
_TAILS = _words(
    "City Town Village Heights Beach Park Springs Hills Island Islands County Province District Region Valley "
    "Junction Land State Republic Bay Creek Nagar Pur Kalan Khurd Selatan Utara Barat Timur Chico Grande kraj novads "
    "raion"
)
_LINKS = (
    " de ", " de la ", " del ", " do ", " da ", " di ", " am ", " an der ", " bei ", " of ", " upon ", " and ", "-sur-",
    "-en-", "-le-", "-la-", "-", "-", "-", "/", "'", "’", " - ", " i ", " sul ", " nad ",
)  # fmt: skip
_SCRIPTS = (
    ("АБВГДЕЖЗИКЛМНОПРСТУФХЦЧШЭЮЯ", "абвгдежзийклмнопрстуфхцчшщъыьэюя"),
    ("ΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩ", "αβγδεζηθικλμνξοπρστυφχψωάέήίόύώ"),
    ("ابتثجحخدرزسشصضطظعغفقكلمنهوي", "ابتثجحخدرزسشصضطظعغفقكلمنهوي"),
    ("אבגדהוזחטיכלמנסעפצקרשת", "אבגדהוזחטיכלמנסעפצקרשת"),
    ("कखगचजटडतदनपबमयरलवसह", "कखगचजटडतदनपबमयरलवसहािीुेो"),
    ("東京北南西山川田中大小上海州市江河湖島林森", "東京北南西山川田中大小上海州市江河湖島林森"),
    ("カサタナハマヤラワ", "アイウエオカキクケコサシスセソンー"),
    ("가나다라마바사아자차", "강남북동서산천주성포"),
    ("ႠႡႢႣႤ", "აბგდევზთიკლმნოპრსტუფქყშჩცხჯ"),
    ("กขคงจชดตถทนบปผพมยรลวสห", "กขคงจชดตถทนบปผพมยรลวสหาิีเแ"),
)


def _pick(rng: random.Random, options: Sequence[str]) -> str:
    return options[rng.randrange(len(options))]


def make_syllable_word(rng: random.Random) -> str:
    """A capitalised word of one to four syllables, plain or with diacritics."""
    plain = rng.random() < 0.6
    word = ""
    for _ in range(rng.choice((1, 2, 2, 2, 3, 3, 4))):
        vowel = _pick(rng, _VOWELS[: 29 if plain else len(_VOWELS)])
        onset = _pick(rng, _ONSETS[: 50 if plain else len(_ONSETS)])
        word += onset + vowel + _pick(rng, _CODAS)
    if rng.random() < 0.15:
        word = word[rng.randrange(1, 3) :]
    return word[:1].upper() + word[1:]


def _in_script(rng: random.Random) -> str:
    first, rest = _SCRIPTS[rng.randrange(len(_SCRIPTS))]
    return _pick(rng, first) + "".join(_pick(rng, rest) for _ in range(rng.randrange(1, 6)))


def _remix(rng: random.Random, real: Sequence[str]) -> str:
    """Words, or halves of words, of real names in a new order."""
    a, b = _pick(rng, real), _pick(rng, real)
    if rng.random() < 0.5:
        words = [_pick(rng, a.split()), _pick(rng, b.split())]
        if rng.random() < 0.25:
            words.append(_pick(rng, _pick(rng, real).split()))
        return _pick(rng, (" ", " ", " ", "-")).join(words)
    cut_a, cut_b = rng.randrange(1, len(a) + 1), rng.randrange(0, len(b))
    return a[:cut_a].rstrip() + b[cut_b:].strip().lower()


def _letters(rng: random.Random) -> str:
    alphabet = "abcdefghijklmnopqrstuvwxyz" + "áéíóúäöüßñçøåšžłđ" * (rng.random() < 0.3)
    return "".join(_pick(rng, alphabet) for _ in range(rng.randrange(3, 10))).capitalize()


def invent(rng: random.Random, kind: str, real: Sequence[str]) -> str:
    """A name nobody has, for an entity type of the graph; ``real`` are names whose words may be mixed."""
    word = make_syllable_word(rng) if rng.random() < 0.8 else _letters(rng)
    if kind == "internet domain" and rng.random() < 0.8:
        return "." + "".join(_pick(rng, "abcdefghijklmnopqrstuvwxyz") for _ in range(rng.choice((2, 2, 3, 4))))
    if kind == "time zone" and rng.random() < 0.8:
        area = _pick(rng, ("Europe", "America", "Asia", "Africa", "Pacific", "Atlantic", "Indian", word))
        return f"{area}/{make_syllable_word(rng)}{'_' + make_syllable_word(rng) if rng.random() < 0.25 else ''}"
    if kind == "currency" and rng.random() < 0.6:
        return f"{word} {_pick(rng, ('Franc', 'Dollar', 'Peso', 'Pound', 'Dinar', 'Krone', 'Rupee', 'Mark', 'Leu'))}"
    if kind == "subdivision type" and rng.random() < 0.7:
        return f"{_pick(rng, ('Free', 'Joint', 'Urban', 'Royal', 'Border', word))} {_pick(rng, _TAILS).lower()}"
    return _place_name(rng, word, real)


def _place_name(rng: random.Random, word: str, real: Sequence[str]) -> str:
    draw = rng.random()
    if draw < 0.35:
        return _remix(rng, real)
    if draw < 0.62:
        return word
    if draw < 0.72:
        return f"{_pick(rng, _HEADS)} {word}"
    if draw < 0.80:
        return f"{word} {_pick(rng, _TAILS)}"
    if draw < 0.92:
        return f"{word}{_pick(rng, _LINKS)}{make_syllable_word(rng)}"
    if draw < 0.95:
        return f"{word} {rng.randrange(1, 10 ** rng.randrange(1, 5))}"
    if draw < 0.96:
        return f"{word}, {_pick(rng, 'ABCDEFG')}.{_pick(rng, 'CDKSV')}."
    if draw < 0.98:
        return f"{word} {make_syllable_word(rng)} {make_syllable_word(rng)}"
    return _in_script(rng)
