"""The list of deliberate mistakes fits the code, and a tenth of it, another one every day, is noticed by the tests."""

import datetime
import os

import pytest

from tests.helpers.processes import ROOT
from tests.mutants import runner
from tests.mutants.__main__ import choose, main, read, summary, write
from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Mutant
from tests.mutants.runner import Outcome


def test_every_mutant_applies():
    assert len(MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        assert mutant.name == "-".join(mutant.name.lower().split())
        assert mutant.mutated(ROOT) != (ROOT / mutant.file).read_text(encoding="utf-8")
        assert mutant.tests
        for test in mutant.tests:
            file, *names = test.split("::")
            assert (ROOT / file).is_file(), test
            for name in names:
                assert f"def {name.split('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_a_mistake_is_made_and_undone(tmp_path):
    file = tmp_path / "code.py"
    file.write_bytes(b"a = 1\r\nb = 1\n")
    mutant = Mutant("wrong-b", "code.py", "b = 1", "b = 2", ("tests/test_x.py",))
    with mutant.applied(tmp_path):
        assert "b = 2" in file.read_text()
    assert file.read_bytes() == b"a = 1\r\nb = 1\n"
    for old, new, message in (
        ("c", "d", "0 times in code.py"),
        (" = 1", " = 2", "2 times in code.py"),
        ("b = 1", "b = 1", "are the same"),
    ):
        with pytest.raises(ValueError, match=message):
            Mutant("wrong", "code.py", old, new, ()).mutated(tmp_path)
    with pytest.raises(ValueError, match=r"there is no other\.py"):
        Mutant("wrong", "other.py", "a", "b", ()).mutated(tmp_path)


def test_choice_and_outcomes(tmp_path):
    tenths = [choose(MUTANTS, (), i) for i in range(10)]
    assert sorted(m.name for tenth in tenths for m in tenth) == sorted(m.name for m in MUTANTS)
    assert [m.name for m in choose(MUTANTS, (MUTANTS[3].name,), None)] == [MUTANTS[3].name]
    with pytest.raises(ValueError, match="there is no mutant nothing"):
        choose(MUTANTS, ("nothing",), None)
    with pytest.raises(ValueError, match="from 0 to 9, got 10"):
        choose(MUTANTS, (), 10)
    outcomes = [Outcome("a", "caught", 1.5, "tests/x.py::test_y", "0"), Outcome("b", "missed", 2.0, "", "1")]
    write(tmp_path / "found.json", outcomes)
    assert [Outcome(**one) for one in read(tmp_path / "found.json")] == outcomes
    assert summary(outcomes) == "1 of 2 caught, 1 missed"
    assert str(outcomes[0]) == "caught    1.5 s  a  (tests/x.py::test_y)"


@pytest.mark.slow(group="mutants")
def test_what_becomes_of_a_mutant(tmp_path):
    """In a folder of its own, without this project's packages."""
    (tmp_path / "code_under_test.py").write_text("import time\n\ndef answer():\n    time.sleep(0)\n    return 42\n")
    test = "import code_under_test\n\ndef test_answer():\n    assert code_under_test.answer() == 42\n"
    (tmp_path / "test_code.py").write_text(test)
    make = lambda old, new: Mutant("one", "code_under_test.py", old, new, ("test_code.py",))
    runner.check_unchanged(tmp_path, [make("42", "43")])
    for mutant, seconds, outcome, by in (
        (make("42", "43"), 60, "caught", "test_code.py::test_answer"),
        (make("return 42", "return 6 * 7"), 60, "missed", ""),
        (make("sleep(0)", "sleep(60)"), 5, "caught", "hung"),
        (make("import time", "import no_such_module"), 60, "broken", "No module named 'no_such_module'"),
        (make("import times", "import time"), 60, "broken", "0 times in code_under_test.py"),
    ):
        found = runner.run(mutant, tmp_path, seconds)
        assert (found.outcome, found.digest) == (outcome, mutant.digest), found
        assert by in found.by
    (tmp_path / "test_code.py").write_text(test.replace("42", "41"))
    with pytest.raises(ValueError, match="without a mistake the tests fail already, pytest ended with 1"):
        runner.check_unchanged(tmp_path, [make("42", "43")])


@pytest.mark.slow(group="mutants")
def test_a_tenth_is_caught():
    tenth = int(os.environ.get("MUTANTS_TENTH", datetime.date.today().toordinal() % 10))
    chosen = choose(MUTANTS, (), tenth)
    with runner.copy() as folder:
        runner.check_unchanged(folder, chosen)
        found = [runner.run(mutant, folder) for mutant in chosen]
    print(*found, sep="\n")
    assert [one.name for one in found if one.outcome != "caught"] == []


def test_list(capsys):
    main(only=(MUTANTS[0].name,), list_=True)
    assert capsys.readouterr().out.startswith(f"{MUTANTS[0].file}  {MUTANTS[0].name}  (tests/")
