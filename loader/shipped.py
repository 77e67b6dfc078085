"""Models that ship with the package: where the files of each are, by the name that stands for a repository."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from bombus.policies.errors import HubError, Problem

# Names that begin so are none of the hub's.
OWNER = "bombus/"
# name -> folder in the package's data
SHIPPED = {"bombus/tiny-shakespeare-fp8": "shipped/tiny-shakespeare-fp8"}


def shipped_folder(name: str) -> Path | None:
    """The folder of the model that ships under a name; None for names of other owners.

    Raises HubError for a name of this package's that nothing ships under, and when the package was not unpacked.
    """
    if not name.startswith(OWNER):
        return None
    if name not in SHIPPED:
        raise HubError(
            Problem(
                subject="repository",
                message="does not ship with Bombus, and names that begin like it are not looked up on the hub",
                expected=" or ".join(SHIPPED),
            ),
            where=name,
        )
    folder = resources.files("bombus").joinpath(SHIPPED[name])
    if not isinstance(folder, Path) or not folder.is_dir():
        # Files of weights are mapped and read in place, which those in an archive cannot be.
        problem = Problem(
            subject="repository",
            message=f"its files are not where they belong, at {folder}",
            remedy="install Bombus again, as an unpacked package",
        )
        raise HubError(problem, where=name)
    return folder
