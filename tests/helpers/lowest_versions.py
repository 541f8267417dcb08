"""The lowest versions that setup.py allows, as pip takes them: `pip install $(python -m tests.helpers.lowest_versions)`.

They are read from the metadata of the installed package, which setup.py wrote. Arguments are libraries to leave as they are, such
as torch, and extras in brackets to take too: `python -m tests.helpers.lowest_versions torch torchvision [eval]`.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import requires

from packaging.requirements import Requirement


def lowest_versions(leave_out: Sequence[str] = (), extras: Sequence[str] = ()) -> list[str]:
    """Requirements such as "transformers==5.17" of the package itself and of its extras.

    Raises:
        ValueError: For a requirement without a lowest version.
    """
    found = []
    for text in requires("hf_geossl") or []:
        requirement = Requirement(text)
        needed = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
        if not needed or requirement.name in leave_out:
            continue
        lowest = [part.version for part in requirement.specifier if part.operator == ">="]
        if len(lowest) != 1:
            raise ValueError(f"setup.py must give {requirement.name} one lowest version, got {text!r}")
        found.append(f"{requirement.name}=={lowest[0]}")
    return found


if __name__ == "__main__":
    given = sys.argv[1:]
    bracketed = [name[1:-1] for name in given if name.startswith("[")]
    print(*lowest_versions([name for name in given if not name.startswith("[")], bracketed))
