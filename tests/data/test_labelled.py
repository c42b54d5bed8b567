"""Labelled texts: files as they are published, and batches of them."""

import numpy as np
import pytest

from jaxlab.core import errors
from jaxlab.data.examples import labelled
from tests.support import sib

# ------------------------------------------------------------------ reading


def test_sib_200_is_read_by_language_split_and_sorted_label(tmp_path):
    said = [("7", "travel", '"Er sagt ""ja""."')]
    sib.write(tmp_path, "deu_Latn", "dev", said)
    said = [("7", "travel", "He says\u2028yes. It's 5\""), ("9", "health", "Two.")]
    sib.write(tmp_path, "eng_Latn", "dev", said)
    sets, names = labelled.read(tmp_path)
    assert names == ("health", "travel")
    assert sets["deu_Latn"]["dev"].texts == ('Er sagt "ja".',)
    english = sets["eng_Latn"]["dev"]
    assert english.texts == ("He says\u2028yes. It's 5\"", "Two.")
    assert english.ids == ("7", "9")
    assert english.labels.dtype == np.int32
    assert english.labels.tolist() == [1, 0]


def test_paws_x_pairs_become_one_text(tmp_path):
    rows = '"A" b .\tB a .\t1\r\nC d .\tD e .\t0\n'
    (tmp_path / "dev.de.tsv").write_text(rows, "utf-8", newline="")
    sets, names = labelled.read(tmp_path)
    assert names == ("0", "1")
    read = sets["de"]["dev"]
    assert read.texts == ('"A" b .\nB a .', "C d .\nD e .")
    assert read.labels.tolist() == [1, 0]
    assert read.ids == ("1", "2")


HEADER = "index_id\tcategory\ttext\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("eng.dev.tsv", HEADER + "1\tsports\n", "eng.dev.tsv:2 has 2 columns"),
        ("eng.dev.tsv", HEADER + "1\tsports\ta\n2\t\tb\n", "tsv:3 has no category"),
        ("eng.dev.tsv", HEADER + "1\tsports\ta\n\n2\tx\tb\n", "tsv:3 has 0 columns"),
        ("eng.dev.tsv", HEADER + '1\tsports\t"a" b\n', "tsv:2 is not quoted"),
        ("eng.dev.tsv", HEADER + '1\tsports\t"a\n', "tsv:2 is not quoted"),
        ("eng.dev.tsv", HEADER + "1\tx\ta\n1\tx\tb\n", "tsv:3 repeats the index_id 1"),
        ("eng.dev.tsv", HEADER, "holds no example"),
        ("eng.dev.tsv", "1\tsports\ta\n", "tsv:1 is '1\\\\tsports\\\\ta'; expected"),
        ("eng.dev.tsv", "\n", "tsv:1 is ''; expected LANG.SPLIT.tsv"),
        ("eng.dev.tsv", "", "eng.dev.tsv holds no line; put some in it"),
        ("dev.de.tsv", "a\tb\n", "dev.de.tsv:1 has 2 columns; expected sentence1"),
        ("dev.de.tsv", "a\tb\t1\na\tb\tyes\n", "tsv:2 has the label 'yes'"),
        ("dev.de.tsv", "a\t \t1\n", "tsv:1 has no sentence2"),
        ("dev.de.tsv", "\n", "dev.de.tsv:1 has 1 columns"),
        ("german.tsv", "a\tb\t1\n", "german.tsv is of an unknown layout; expected"),
        ("notes.txt", "a", "holds no .tsv; expected"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_line(
    tmp_path, name, content, message
):
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(errors.UserError, match=message):
        labelled.read(tmp_path)


def test_bytes_that_are_not_utf_8_are_named_by_line(tmp_path):
    (tmp_path / "eng.dev.tsv").write_bytes(HEADER.encode() + b"1\tx\t\xff\n")
    with pytest.raises(errors.UserError, match=r"eng.dev.tsv:2 is not UTF-8"):
        labelled.read(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(errors.UserError, match="no folder"):
        labelled.read(tmp_path / "nowhere")


# ------------------------------------------------------------------ batches


def encoded(count, length=4):
    tokens = np.arange(count * length, dtype=np.int32).reshape(count, length)
    return labelled.Encoded(tokens, tokens >= 0, np.arange(count, dtype=np.int32), 0)


def test_the_order_follows_from_seed_and_step_alone():
    one, two = (labelled.Batches(encoded(10), 4, seed=3) for _ in range(2))
    late = one(7)
    for step in range(3):
        one(step)
    for key, value in two(7).items():
        np.testing.assert_array_equal(value, late[key])
        np.testing.assert_array_equal(one(7, slice(1, 3))[key], value[1:3])
    other = labelled.Batches(encoded(10), 4, seed=4)
    assert (other.order(0, 40) != one.order(0, 40)).any()


def test_every_example_comes_once_an_epoch_and_epochs_differ():
    batches = labelled.Batches(encoded(10), 4, seed=0)
    drawn = np.concatenate([batches(step)["labels"] for step in range(10)])
    epochs = drawn.reshape(4, 10)
    assert (np.sort(epochs) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_evaluation_holds_every_example_once():
    for count in (1, 4, 5, 8):
        batches = list(labelled.eval_batches(encoded(count), 4))
        assert {len(batch["tokens"]) for batch in batches} == {4}
        seen = np.concatenate([b["labels"][b["real"]] for b in batches])
        assert seen.tolist() == list(range(count))
