"""What the keys of configs mean, read from the source."""

import ml_collections

from jaxlab.core import config_comments

SOURCE = '''
"""A config."""
import dataclasses

@dataclasses.dataclass
class Trust:
    """A region.

    Attributes:
        rho: its radius, on
            two lines.
    """

    rho: float = 0.5
    other: int = 1  # beside it

def other_section():
    return {"length": 1, "alone": 2}  # of another section

def get_config():
    return {
        "steps": 3,  # updates
        "data": {
            # Above the key,
            # in two lines.
            "length": 8,
            "names": (
                "a",
            ),  # at the end of the value
            "more": {},  # grows
            "silent": 0,
        },
    }
'''


def test_a_key_is_explained_by_the_comment_beside_it(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(SOURCE)
    config = ml_collections.ConfigDict(
        {
            "steps": 3,
            "data": {"length": 8, "names": ("a",), "more": {}, "silent": 0},
            "trust": {"rho": 0.5, "other": 1},
        }
    )
    assert config_comments.read(config, [file]) == {
        "steps": "updates",
        "data.length": "Above the key, in two lines.",
        "data.names": "at the end of the value",
        "data.more": "grows",
        "data.silent": "",
        "trust.rho": "its radius, on two lines",
        "trust.other": "beside it",
    }
