"""Numbers with their nouns, for messages."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Puts a number before its noun: "1 file", "2 files", "1,280,000 images"; `plural` where an s does not make it."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
