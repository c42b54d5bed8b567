"""Lines for a terminal."""

from hypothesis import given
from hypothesis import strategies as st

from jaxlab.core import errors


@given(st.text())
def test_a_line_holds_nothing_that_a_terminal_obeys(text):
    spelled = errors.spell_out(text)
    assert not errors.has_commands(spelled)
    assert errors.spell_out(spelled) == spelled
    assert "\n" not in spelled
    assert "\x1b" not in spelled


def test_letters_of_all_scripts_stay_as_they_are():
    text = "é 你好 עברית \u00a0 क्षि 👩\u200d🚀 \\x1b"
    assert errors.spell_out(text) == text
