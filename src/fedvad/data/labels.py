"""What the name of a folder says about the images in it: good, defective, or to be asked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fedvad.errors import ConfigError, join_names


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_GOOD = _set(
    "good goods goodimages ok okay oks pass passed passes normal normals negative negatives neg "
    "clean healthy nominal accepted accept acceptable intact faultless flawless perfect correct "
    "regular undamaged unbroken unscratched defectless conforming conformant nominals io gut "
    "gutteil gutteile intakt fehlerfrei einwandfrei unauffällig unauffaellig bon conforme "
    "conformes sain saine bueno buono goed normale unremarkable "
    "正常 合格 良品 ok品 정상 양품 норма годен годные"
)
# These are asked about as well, but also have other meanings.
_MAYBE = _set(
    "fine sound golden gold reference ref standard conform compliant qualified usable benign "
    "control controls success norm norma 良 好"
)
_DEFECT = _set(
    "bad ng nok ko nio defect defects defective defected anomaly anomalies anomalous anomal "
    "abnormal abnormals fault faults faulty flaw flaws damage damages damaged fail failed fails "
    "reject rejected rejects scrap broken positive positives tumor tumour error errors issue issues"
)
# A folder of these and another word: no_crack, scratch_free, without_holes.
_LACKS = frozenset({"no", "free", "without", "zero", "none", "sans", "ohne"})
_NOT = frozenset({"no", "non", "not", "without", "free", "un", "none", "zero", "sans", "ohne"})
_FILLER = _set(
    "image images img imgs pic pics picture pictures photo photos sample samples part parts test "
    "train training testing set data dataset class label type cat category folder cam camera "
    "only all the is of true old new copy "
    # where and when it was taken: ok_front, good_line2, normal_left
    "front back rear left right top bottom upper lower side inner outer above below view angle "
    "position line station shift batch lot day night week month"
)
_JOINED = sorted(_NOT - {"un", "free"}, key=lambda word: (-len(word), word))


Names = str | Iterable[str] | None


@dataclass(frozen=True)
class LabelNames:
    """Names of folders that hold normal images (good) or defects, as the user gives them.

    A folder called `good` needs no naming, in any case of its letters. before: names that were
    given earlier, to a training for example, and hold where these say nothing. left_out: files of
    normal images, relative to the data folder, that a person takes from the training. cubes:
    whether images are cubes of bands.
    """

    good: tuple[str, ...] = ()
    defect: tuple[str, ...] = ()
    before: LabelNames | None = None
    left_out: tuple[str, ...] = ()
    cubes: bool = False

    def __post_init__(self) -> None:
        both = {n.casefold() for n in self.good} & {n.casefold() for n in self.defect}
        if both:
            raise ConfigError(
                f"--good and --defect both name {join_names(both)}: give each name once"
            )

    @classmethod
    def of(cls, good: Names, defect: Names, before: LabelNames | None = None) -> LabelNames:
        """As a caller gives them: a name, several, or None; raises `ConfigError` otherwise."""
        left_out = () if before is None else before.left_out
        cubes = before is not None and before.cubes
        return cls(_names(good, "good"), _names(defect, "defect"), before, left_out, cubes)

    def rule(self, name: str) -> tuple[bool, str] | None:
        """Whether the folder is one of normal images, and by which rule; None: it looks like one.

        The user is asked then: the name means normal to a person, but nobody said so.
        """
        folded = name.casefold()
        for given in self.good:
            if folded == given.casefold():
                return True, f"--good {given}"
        for given in self.defect:
            if folded == given.casefold():
                return False, f"--defect {given}"
        if self.before is not None:
            return self.before.rule(name)
        if folded == "good":
            return True, "named good"
        return None if looks_good(name) else (False, "not called good")

    def with_good(self, *names: str) -> LabelNames:
        """Also with these names, where they are not named otherwise."""
        taken = {name.casefold() for name in self.defect}
        more = tuple(name for name in names if name.casefold() not in taken)
        return replace(self, good=(*self.good, *more))


def _names(given: Names, option: str) -> tuple[str, ...]:
    several = () if given is None else (given,) if isinstance(given, str) else given
    found = tuple(several) if isinstance(several, Iterable) else (several,)
    if not all(isinstance(name, str) for name in found):
        raise ConfigError(f"{option} is {given!r}; give the name of a folder, or a list of names")
    return found


def looks_good(name: str) -> bool:
    """Whether a folder's name most likely means normal images: no_defect, OK, 0, no_crack."""
    said = _reading(name, _GOOD | _MAYBE)
    if said is not None:
        return said
    words = [word for word in _words(name) if word not in _FILLER]
    alone = len(words) == 1 and words[0].strip("0") == ""
    lacks = any(word in _LACKS for word in words)
    return alone or (lacks and not any(word in _GOOD | _DEFECT for word in words))


def says_defect(name: str) -> bool:
    """Whether a folder's name says defect outright, as NG, bad or abnormal does."""
    return _reading(name, _GOOD) is False


def contradicts(name: str, *, good: bool) -> bool:
    """Whether a folder within one of good (or defective) images says the opposite outright."""
    return says_defect(name) if good else _reading(name, _GOOD) is True


def _reading(name: str, good_words: frozenset[str]) -> bool | None:
    """True for good, False for defective, None where the name says neither."""
    words = _words(name)
    negated = any(word in _NOT for word in words)
    bare = [word for word in words if word not in _NOT and word not in _FILLER]
    bad = any(word in _DEFECT for word in bare)
    good = any(word in good_words for word in bare)
    if not bad and not good:
        return None
    if bad and not good:
        return negated and all(word in _DEFECT for word in bare)
    if all(word in good_words or word.isdecimal() for word in bare):
        return not negated
    return None


def _words(name: str) -> list[str]:
    """Lower-case words of a name: no_defect, NoDefect and nodefect are all no, defect."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    spaced = re.sub(r"(?<=[a-zA-Z])(?=[0-9])|(?<=[0-9])(?=[a-zA-Z])", " ", spaced)
    words: list[str] = []
    for word in re.findall(r"[^\W_]+", spaced.casefold()):
        words += _split(word)
    # German test reports say i.O. (in order) and n.i.O.
    return {"io": ["io"], "nio": ["nio"]}.get("".join(words), words)


def _split(word: str) -> list[str]:
    known = _GOOD | _DEFECT
    if word in known:
        return [word]
    for negation in _JOINED:
        if word.startswith(negation) and word.removeprefix(negation) in known:
            return [negation, word.removeprefix(negation)]
    if word.endswith("free") and word.removesuffix("free") in known:
        return [word.removesuffix("free"), "free"]
    return [word]
