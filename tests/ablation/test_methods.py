"""The table of searches, and the names that the command line knows."""

import pytest

from jaxlab import ablation
from jaxlab.ablation import method_names, methods
from jaxlab.core import errors


def test_every_name_of_the_command_line_is_a_search_and_no_other():
    with pytest.raises(errors.UserError) as caught:
        methods.search_by("random", None, {}, None, None, ablation.Limits())
    assert str(caught.value).endswith(f"use one of {', '.join(method_names.METHODS)}")
