from __future__ import annotations

import json
import re
import string
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evaluation.answers import normalize_answer
from evaluation.graders import exact_match
from evaluation.retention import general_questions

# Groups of spellings of one value; two groups of a kind are two values.
VALUES = {
    "decimals": [["1.5", "1,5", "１．５", "1.5."], ["15"], ["0.5", ".5"], ["1.50"], ["-0.5", "-.5", "−0.5"], ["1.5.1"]],
    "signs": [["5", "+5", "(5)"], ["-5", "−5", "–5", "－5", "(-5)", "*-5*"], ["5 - 5", "5–5"]],
    "ranges": [["3-4", "3–4", "3 – 4", "3—4", "3〜4", "3～4"], ["34"], ["3 4"], ["-3--4", "−3 – −4"], ["3/4", "¾"]],
    "thousands": [["12,500", "12500", "12’500", "12\u202f500", "12 500"], ["12.500"]],
    "large": [["1,250,000", "1.250.000", "12,50,000", "1250000"], ["1,250,50"], ["1250"], ["1.250"]],
    "european": [["1.250,50", "1,250.50", "1250.50", "1 250,50"], ["1.250"], ["125050"]],
    "lists": [["1, 2, 3", "1,2,3", "1; 2; 3", "1、2、3"], ["123"], ["1.2.3"]],
    "times": [["6:30", "６：３０"], ["630"], ["6.30"], ["6:30 p.m.", "6:30 pm"]],
    "dates": [["2024-05-01"], ["20240501"], ["2024-5-1"]],
    "powers": [["10⁶", "10^6"], ["106"], ["10⁻⁶", "10^-6"]],
    "fractions": [["1½", "1 1/2"], ["11/2"], ["½", "1/2"]],
    "percent": [["5%", "5 %", "5 percent", "5 per cent", "٥٪"], ["5"], ["5‰"], ["-5%", "−5 %"]],
    "money": [["$5", "$ 5", "5 $", "5$", "＄5"], ["€5", "5 €"], ["5"], ["-$5", "$-5"], ["$5.50", "$ 5.50"], ["£5"]],
    "bounds": [["<5", "< 5", "＜5"], ["5"], [">5"], ["≤5"], ["±5"]],
    "degrees": [["20 °C", "20°C"], ["-20 °C", "−20°C"], ["20"]],
    "languages": [["C"], ["C++", "C++.", "Ｃ++"], ["C#", "c#"], ["C++17"], ["F#"], ["F"]],
    "blood": [["A+"], ["A-", "A−", "A-."], ["A", "the A"], ["AB-"], ["AB"]],
    "articles": [["vitamin A", "the vitamin A"], ["vitamin", "a vitamin"], ["vitamin C"]],
    "quotes": [["six", "“six”", "«six»", "「six」", "‘six’", '"six"']],
    "apostrophes": [["Ilse's", "Ilse’s", "Ilseʼs", "ILSE'S"]],
    "abbreviations": [["U.S.", "US", "u.s."], ["Ph.D.", "PhD"]],
    "hyphens": [["co-op", "co‑op", "co–op", "coop"], ["co op", "co—op"]],
    "digits": [["2025", "２０２５", "٢٠٢٥", "२०२५"], ["2052"]],
    "chinese": [["東京", "東京。", "「東京」", "東京！"], ["京東"]],
    "kana": [["ガス", "ｶﾞｽ"], ["カス"]],
    "unseen": [["Varley", "Var\u200bley", "Var\xadley", "Var\u200dley", "\ufeffVarley"]],
    "accents": [["Café", "Cafe\u0301", "CAFÉ"], ["Cafe"]],
    "turkish": [["İzmir", "izmir", "IZMIR"], ["Isparta", "ısparta", "ISPARTA"]],
    "german": [["Straße", "STRASSE", "strasse"]],
    "greek": [["ΟΔΟΣ", "οδος", "οδοσ"]],
    "ligatures": [["filled", "ﬁlled"], ["H₂O", "H2O"]],
    "roman": [["XIV", "xiv"], ["14"]],
    "names": [["Smith & Sons", "Smith and Sons"], ["O’Brien", "O'Brien"]],
}
SAME = [(kind, pair) for kind, groups in VALUES.items() for group in groups for pair in combinations(group, 2)]
OTHER = [(k, (a[0], b[0])) for k, groups in VALUES.items() for a, b in combinations(groups, 2)]


@pytest.mark.parametrize(("kind", "pair"), SAME)
def test_spellings_of_one_value_are_equal(kind: str, pair: tuple[str, str]) -> None:
    assert exact_match(*pair) == 1.0


@pytest.mark.parametrize(("kind", "pair"), OTHER)
def test_values_are_kept_apart(kind: str, pair: tuple[str, str]) -> None:
    assert exact_match(*pair) == 0.0


def test_field_cases_are_decided_as_they_say(shared_data: Callable[..., Path]) -> None:
    lines = shared_data("..", "cases", "answers.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    assert [c["case"] for c in cases if exact_match(c["gold"], c["answer"]) != c["same"]] == []


ODD = st.text(st.sampled_from("0159 ,.-+%$€'#~:/()aAbé–−—٥５．，⁶½ßİς\u0301"), max_size=10)
ANYTHING = st.one_of(ODD, st.text(st.characters(exclude_categories=()), max_size=20))


@given(ANYTHING, ANYTHING)
@example("1,250 a per cent", "0:A-")
@example("İ", "i\u0307")
def test_normalisation_is_idempotent_and_comparison_symmetric(one: str, other: str) -> None:
    assert normalize_answer(normalize_answer(one)) == normalize_answer(one)
    if one.strip() and other.strip():
        assert exact_match(one, one) == 1.0
        assert exact_match(one, other) == exact_match(other, one)


def test_plain_english_is_normalised_as_squad_does() -> None:
    def squad(text: str) -> str:
        bare = text.lower().translate(str.maketrans("", "", string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())

    texts = [text for asked in general_questions() for text in (asked.question, asked.answer)]
    assert len(texts) > 200
    assert [text for text in texts if normalize_answer(text) != squad(text)] == []
