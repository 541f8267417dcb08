"""What folders and files are called after splits: train, val2017, test_images, imagesTr."""

import re
from functools import lru_cache

SPLIT_WORDS = {
    "train": ("train", "training", "trainval"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}
SPLIT_OF_SHORT_WORD = {"tr": "train", "va": "validation", "ts": "test"}  # of imagesTr, labelsTs
_ABOUT = r"(?:images?|imgs?|pictures?|photos?|data|set|split|part|\d+)"
_SPLIT_NAME = re.compile(
    rf"(?:{_ABOUT}[\s_.-]+)*({'|'.join(sorted(SPLIT_OF_WORD, key=len, reverse=True))})(?:[\s_.-]*{_ABOUT})*"
)
_SHORT_NAME = re.compile(r"(?:images?|imgs?|labels?)[\s_.-]?(tr|va|ts)")


@lru_cache(maxsize=4096)
def split_of(word: str) -> str | None:
    """The split that a folder is called after: "train", "validation" or "test"; None for any other name."""
    word = word.lower().strip()
    if match := _SHORT_NAME.fullmatch(word):
        return SPLIT_OF_SHORT_WORD[match[1]]
    match = _SPLIT_NAME.fullmatch(word)
    return SPLIT_OF_WORD[match[1]] if match else None


def canonical(split: str) -> str:
    """The split that a user's word for one means; another word is returned as it is."""
    return split_of(split) or split
