"""`tag_pref`: its three values, what counts as equal, and texts that mean it harm."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqproc.errors import SequenceError
from seqproc.rewards import answers_equal, tag_pref, tag_pref_batch, tagged_answer
from seqproc.rewards.math_judge import MathJudge


def answered(answer):
    return f"I think so.</think>\n<answer>{answer}</answer>"


@pytest.fixture
def judge():
    hasty = MathJudge(cpu_seconds=0.5, wall_seconds=20.0)
    yield hasty
    hasty.close()


class TestForm:
    def test_the_three_values(self):
        assert tag_pref(answered("4"), "4") == 1.0
        assert tag_pref(answered("5"), "4") == 0.5
        assert tag_pref("The answer is 4.", "4") == 0.0

    @pytest.mark.parametrize("gold", [None, "", "  "])
    def test_without_a_gold_answer_there_is_no_reward(self, gold):
        assert tag_pref(answered("4"), gold) == 0.0
        assert tag_pref(answered(""), gold) == 0.0

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "<answer>4",
            "4</answer>",
            "</answer>4<answer>",
            "<answer>4</answer></answer>",
            "<answer><answer>4</answer>",
            "<answer>4</answer> or <answer>4</answer>",
            "<ANSWER>4</ANSWER>",
            "< answer>4</ answer>",
        ],
    )
    def test_anything_but_one_block_earns_nothing(self, text):
        assert tag_pref(text, "4") == 0.0

    def test_an_empty_block_has_the_form(self):
        assert tagged_answer("<answer> \n </answer>") == ""
        assert tag_pref(answered(""), "4") == 0.5

    def test_text_after_the_block_does_not_matter(self):
        assert tag_pref(answered("4") + " And so on.", "4") == 1.0


EQUAL = [
    ("4", "4"),
    (" 4\n", "4"),
    ("4.", "4"),
    ("4.0", "4"),
    ("+4", "4"),
    ("04", "4"),
    ("$4$", "4"),
    ("$4", "4"),
    ("4", "$4$"),
    ("1,000", "1000"),
    ("$1,234.50.", "1234.5"),
    ("1000", "1,000"),
    ("1/2", "0.5"),
    ("-.5", "-1/2"),
    ("−3", "-3"),
    ("x > 3", "x>3"),
    ("Paris", "Paris."),
    ("no  way", "no way"),
    (r"\boxed{4}", "4"),
    (r"$\boxed{ 1,000 }$.", "1000"),
    (r"\text{Paris}", "Paris"),
    ("9" * 400, "9" * 400),
    ("a" * 10_000, "a" * 10_000),
    # from here on it takes math-verify
    (r"So \boxed{4}", "4"),
    (r"\frac{1}{2} + 1", "1.5"),
    ("x = 4", "4"),
    ("5 m", "5"),
    ("$x + 1$", "1 + x"),
    (r"\frac{8}{2}", "4"),
    (r"-\frac12", "-0.5"),
    (r"\sqrt{16}", "4"),
    ("x + 1", "1 + x"),
    ("2 + 2 = 4", "4"),
    ("4 apples", "4"),
    ("0.3333333", "1/3"),
    ("(4)", "4"),
]

DIFFERENT = [
    ("5", "4"),
    ("-4", "4"),
    ("40", "4"),
    ("4.1", "4"),
    ("1,00", "100"),
    ("1 2", "12"),
    ("4/0", "4"),
    ("0/4", "4"),
    ("", "4"),
    (".", "4"),
    ("$", "4"),
    ("/", "4"),
    ("99999999999999999999", "99999999999999999998"),
    ("9" * 500, "8" * 500),
    ("a" * 10_000, "a" * 9_999),
    ("four", "4"),
    ("apples", "4"),
    ("siraP", "Paris"),
    ("x + 1", "y + 1"),
    ("$x + 1$", "$y + 1$"),
    ("x + 4", "4"),
    (r"\frac{1}{2} + 1", "1"),
    (r"\frac{9}{2}", "4"),
    (r"\boxed{5}", "4"),
    ("0.33", "1/3"),
    ("٤", "4"),
    ("\ud800", "4"),
]


class TestEquality:
    @pytest.mark.parametrize(("answer", "gold"), EQUAL)
    def test_equal(self, answer, gold):
        assert answers_equal(gold, answer)

    @pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
    def test_different(self, answer, gold):
        assert not answers_equal(gold, answer)

    @given(st.integers(), st.integers(1, 10**6))
    def test_fractions_of_one_value_are_equal_and_neighbours_are_not(self, value, factor):
        assert answers_equal(str(value), f"{value * factor}/{factor}")
        assert answers_equal(f"{value:,}", f"{value}.00")
        assert not answers_equal(str(value), str(value + 1))


class TestBatch:
    def test_one_gold_for_all_or_one_each(self):
        texts = [answered("4"), answered("5"), "4"]
        assert tag_pref_batch(texts, "4") == [1.0, 0.5, 0.0]
        assert tag_pref_batch(texts, ["4", "5", "4"]) == [1.0, 1.0, 0.0]
        assert tag_pref_batch(texts, [None, "4", None]) == [0.0, 0.5, 0.0]
        assert tag_pref_batch(texts, None) == [0.0, 0.0, 0.0]
        assert tag_pref_batch([], "4") == []

    def test_lengths_must_fit(self):
        with pytest.raises(SequenceError, match="2 gold answers for 1 responses"):
            tag_pref_batch([answered("4")], ["4", "5"])


PIECES = st.sampled_from(
    ["<answer>", "</answer>", "4", "-", "/", ".", ",", "$", " ", "\\frac", "{", "}", "(", "="]
)


class TestAnyText:
    @given(st.text(st.characters()) | st.lists(PIECES | st.text(max_size=3)).map("".join))
    @settings(max_examples=200, deadline=None)
    def test_never_raises_and_has_three_values(self, text):
        assert tag_pref(text, "4") in {0.0, 0.5, 1.0}

    @given(st.lists(PIECES | st.text(max_size=2), max_size=8).map("".join), st.text(max_size=5))
    @settings(max_examples=60, deadline=None)
    def test_any_answer_against_any_gold(self, answer, gold):
        assert tag_pref(answered(answer), gold) in {0.0, 0.5, 1.0}
        assert answers_equal(gold, gold)


class TestHarmfulText:
    def test_a_tower_of_powers_ends_and_the_next_answer_is_judged(self):
        started = time.monotonic()
        assert tag_pref(answered("9**9**9**9"), "4") == 0.5
        assert tag_pref(answered(r"\frac{8}{2}"), "4") == 1.0
        assert time.monotonic() - started < 60  # 6 s alone; the machine may be busy

    @pytest.mark.parametrize(
        "answer",
        [
            "10^{10^{10}}",
            "100000!",
            "9^9^9^9",
            "10!!!!!!!",
            r"\int_0^{10^{99}} x^{x^x} dx",
            "{" * 500,
            r"\left(" * 80,
            r"\frac{1}{" * 50 + "2" + "}" * 50,
            "<" * 512,
        ],
    )
    def test_the_judge_ends_it(self, judge, answer):
        started = time.monotonic()
        assert judge.are_equal("4", answer) is False
        assert time.monotonic() - started < 20
        assert judge.are_equal("4", r"\frac{8}{2}") is True

    @pytest.mark.parametrize(
        "text", ["{" * 10**6, "9" * 10**6, "4 " * 500_000, "<answer" * 150_000]
    )
    def test_a_megabyte_is_not_parsed(self, text):
        started = time.monotonic()
        assert tag_pref(answered(text), "4") == 0.5
        assert tag_pref(text, "4") == 0.0
        assert time.monotonic() - started < 2

    def test_the_clock_ends_it_as_well(self):
        started = time.monotonic()
        impatient = MathJudge(cpu_seconds=100.0, wall_seconds=0.5)
        try:
            assert impatient.are_equal("4", "9**9**9**9") is False
            assert impatient._process is None
            assert time.monotonic() - started < 30
        finally:
            impatient.close()


class TestTheHelperProcess:
    def test_no_process_before_it_is_needed(self, judge):
        assert judge._process is None
        judge.are_equal("4", r"\boxed{4}")
        assert judge._process is not None

    def test_it_is_kept_between_questions(self, judge):
        judge.are_equal("4", r"\boxed{4}")
        first = judge._process
        judge.are_equal("4", r"\boxed{5}")
        assert judge._process is first

    def test_it_starts_again_when_it_was_killed_or_closed(self, judge):
        assert judge.are_equal("4", r"\boxed{4}")
        judge._process.kill()
        judge._process.wait()
        assert judge.are_equal("4", r"\boxed{4}")
        judge.close()
        judge.close()
        assert judge.are_equal("4", r"\boxed{4}")

    def test_many_threads_get_their_own_verdicts(self, judge):
        pairs = [(str(gold), rf"\boxed{{{answer}}}") for gold in range(8) for answer in range(8)]
        with ThreadPoolExecutor(8) as pool:
            verdicts = list(pool.map(lambda pair: judge.are_equal(*pair), pairs))
        assert verdicts == [rf"\boxed{{{gold}}}" == answer for gold, answer in pairs]

    def test_a_reward_outside_the_main_thread(self):
        rewards = []
        thread = threading.Thread(
            target=lambda: rewards.append(tag_pref(answered(r"\frac{8}{2}"), "4"))
        )
        thread.start()
        thread.join()
        assert rewards == [1.0]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_a_forked_child_has_its_own(self, judge):
        """Also when the parent is forked in the middle of a question, its lock held."""
        slow = threading.Thread(target=judge.are_equal, args=("4", "9**9**9**9"))
        slow.start()
        while not judge._lock.locked():
            time.sleep(0.001)
        child = multiprocessing.get_context("fork").Process(
            target=lambda: sys.exit(0 if judge.are_equal("4", r"\frac{8}{2}") else 1)
        )
        child.start()
        child.join(15)
        child.kill()
        slow.join()
        assert child.exitcode == 0
        assert judge.are_equal("4", r"\frac{8}{2}")

    def test_it_ends_with_the_interpreter_and_needs_no_torch(self):
        code = (
            "import sys; from seqproc import rewards\n"
            r"assert rewards.tag_pref('<answer>\\frac{8}{2}</answer>', '4') == 1.0" "\n"
            "assert 'torch' not in sys.modules and 'sympy' not in sys.modules\n"
            "print(sys.modules['seqproc.rewards.tag_pref']._JUDGE._process.pid)"
        )  # fmt: skip
        finished = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr == ""
        with pytest.raises(ProcessLookupError):
            os.kill(int(finished.stdout), 0)
