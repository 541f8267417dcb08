"""Numbers with their nouns, for messages."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Puts a number before its noun: "1 file", "2 files", "1,280,000 images".

    Args:
        number (`int`): how many.
        noun (`str`): of one, such as "file" or "row of the dataset".
        plural (`str`, *optional*): of any other number; `noun` with an s by default.

    Returns:
        `str`: thousands are separated by commas.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
