"""Classification of single lines of model output, without context (see `teacher.parsing.parser`).

Every regular expression is bounded or anchored, so that a line of any length is processed in linear time.
"""

from __future__ import annotations

import itertools
import re
from enum import StrEnum
from typing import NamedTuple

from evaluation.common.text import blank

_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"
_QUESTION_WORDS = (
    "question|frage|pregunta|domanda|pergunta|vraag|fråga|spørgsmål|pytanie|soru|вопрос|питання|سؤال|السؤال|प्रश्न"
    "|问题|問題|问|問|質問|질문"
)
_ANSWER_WORDS = (
    "answer|correct answer|ans|antwort|antwoord|respuesta|réponse|risposta|resposta|svar|odpowiedź|cevap|yanıt|ответ"
    "|відповідь|إجابة|الإجابة|جواب|الجواب|उत्तर|答案|答|回答|答え|답변|답"
)
_TURN = re.compile(
    r"(?:<\|im_start\|>|<\|start\|>|<start_of_turn>|<\|start_header_id\|>)(?:assistant|model)(?:<\|end_header_id\|>)?"
    r"|<\|(?:assistant|begin_of_text)\|>|\[/INST\]|<s>|</?(?:answer|output|response|final|final_answer|result|self_edit|ul|ol|items|list"
    r"|implications|statements|facts|pairs|data)>"
)
_END = re.compile(
    r"<\|(?:im_end|eot_id|eom_id|end|end_of_text|endoftext|end_of_turn|return)\|>|<(?:end_of_turn|eos)>|</s>"
    r"|<[|｜]end[_▁]of[_▁]sentence[|｜]>"
)
_TERMINATED = re.compile(r"[.!?…。！？｡．؟۔।॥։][\"'”’»)\]*_]{0,3}\Z")
_STAR_RUN = re.compile(r"(?<![\w*])\*{2,}+|(?<!\*)\*{2,}+(?!\w)")
_MARKER = re.compile(
    r"[-*+][ \t\xa0]+|[•‣◦▪●·∙]\s?|[–—>][ \t\xa0]+|#{1,6}\s+"
    r"|\((?P<n1>\d{1,3})\)\s?|(?P<n2>\d{1,3})(?:[.)]{1,2}(?:\s+|(?=[^\W\d_]|[\"“*(]))|[．）、]\s?)|(?P<n3>\d{1,3}):\s+"
    r"|（(?P<n4>\d{1,3})）\s?|[①-⑳]\s?|[一二三四五六七八九十]{1,3}、"
    r"|\([a-h]\)\s|[a-h](?:\)\s|\.\s(?=[A-Z]))|\([ivx]{1,4}\)\s|[ivx]{1,4}[.)]\s"
)
_LABEL = re.compile(
    r"(?i:(?:(?:rewritten|rephrased|reworded|revised|alternative|paraphrased)\s)?"
    r"(?:passage|version|implication|rewrite|rewriting|rephrasing|paraphrase|statement|variation|alternative|option))"
    r"\s?#?(?P<n>\d{1,3})\s?(?:[:.)]|[-–—](?=\s)|\Z)\s*"
)


def without_markup(text: str) -> tuple[str, int]:
    """Return a text with the marks of chat templates blanked, and all behind its end mark; and the lines of the latter.

    See `evaluation.common.text.blank`. An end mark counts only behind words.
    """
    in_pairs = "<question>" in text
    text = blank(text, (mark.span() for mark in _TURN.finditer(text) if not in_pairs or "answer" not in mark[0]))
    position = 0
    for mark in _END.finditer(text):
        if has_letter(text[position : mark.start()]):
            whole = blank(text, [(mark.start(), len(text))])
            return whole, count_lines(text) - count_lines(whole)
        position = mark.end()
    return text, 0


def count_lines(text: str) -> int:
    """Return the number of non-blank lines."""
    return sum(bool(line.strip()) for line in text.splitlines())


def strip_space(text: str) -> str:
    """Strip white space and invisible joiners at both ends."""
    return text.strip().strip(_INVISIBLE).strip()


def is_terminated(text: str) -> bool:
    """Return whether `text` ends like a complete sentence."""
    return _TERMINATED.search(text, max(0, len(text) - 4)) is not None


def has_letter(text: str) -> bool:
    """Return whether `text` has a letter of any script."""
    return any(character.isalpha() for character in text)


def normalise(text: str) -> str:
    """Return the form in which duplicates are equal: case-folded, single spaces, no final punctuation."""
    return " ".join(text.casefold().split()).rstrip(" .!;,:")


def is_digit_loop(text: str) -> bool:
    """Return whether `text` has at least six numbers, almost all of them steps of 0 or 1, and no letter."""
    if has_letter(text):
        return False
    digits = [int(run[-9:]) for run in re.findall(r"[0-9]+", text)]
    if len(digits) < 6:
        return False
    steps = [b - a in (0, 1) for a, b in itertools.pairwise(digits)]
    return sum(steps) >= 0.8 * len(steps)


def remove_bold(text: str) -> str:
    """Remove the asterisks of bold text, but not those between word characters (2**3)."""
    return _STAR_RUN.sub("", text)


class Stripped(NamedTuple):
    """A line without its list markers."""

    text: str
    numbers: tuple[int, ...]
    """Of the markers, at most four."""
    marked: bool


def strip_markers(text: str) -> Stripped:
    """Remove leading list markers, also nested ones: bullets, numbers, letters, "Passage 3:" labels."""
    numbers: list[int] = []
    position, marked = 0, False
    while match := _MARKER.match(text, position) or _LABEL.match(text, position):
        position, marked = match.end(), True
        numbers += _numbers_of(match)
    return Stripped(strip_space(text[position:]), tuple(numbers[:4]), marked)


def _numbers_of(match: re.Match[str]) -> tuple[int, ...]:
    return tuple(int(value) for value in match.groupdict().values() if value)


class DropReason(StrEnum):
    """Reason why a line is not part of the self-edit."""

    MARKER_ONLY = "marker_only"
    """It has no letter: a rule, a fence, a lone number or bullet, a tag."""
    HEADING = "heading"
    """A title, a label or the introduction of a list."""
    PREAMBLE = "preamble"
    """Addresses the reader ("Certainly! Here is ...:", "I hope this helps")."""
    ECHOED_PROMPT = "echoed_prompt"
    """Repeats the prompt: its instruction, a label or its passage."""
    OTHER_TASK = "other_task"
    """Follows the end of the edit: another passage, a chat or a closing remark."""
    THOUGHT = "thought"
    """What the model thought before it wrote (`evaluation.common.text`)."""
    REFUSAL = "refusal"
    """Declines the task, or stands unlisted behind a line that does."""
    DUPLICATE = "duplicate"
    """Equals an earlier line up to case, spaces and final punctuation."""
    DIGIT_LOOP = "digit_loop"
    """Counts or repeats a number ("1. 1. 1.", "1. 2. 3.")."""
    UNANSWERED_QUESTION = "unanswered_question"
    UNPAIRED_ANSWER = "unpaired_answer"
    CHOICE = "choice"
    CUT_LINE = "cut_line"
    """The last line, truncated by the token limit."""
    EXTRA_SPECIFICATION = "extra_specification"
    """A JSON block with a part that an earlier block has given."""


class Kind(StrEnum):
    """Kind of a line with content, without context."""

    STATEMENT = "statement"
    QUESTION = "question"
    ANSWER = "answer"
    PAIR = "pair"
    CHOICE = "choice"
    PASSAGE = "passage"
    """`Passage:`, possibly with text."""
    TASK_START = "task_start"
    """An instruction to read a passage, or a system prompt."""


class Line(NamedTuple):
    """A classified line without its markers."""

    at: int
    """Index among the non-blank lines."""
    kind: Kind | DropReason
    """A reason for lines that hold no content in any context."""
    text: str
    """Statement or question, or the answer of an `ANSWER`; empty after a bare label."""
    answer: str | None = None
    """Answer of a `PAIR`; "" for a question that ends with a bare "Answer:"."""
    numbers: tuple[int, ...] = ()
    """Numbers in markers and label, outermost first."""
    marked: bool = False
    gap: bool = False
    indented: bool = False
    weak_heading: bool = False
    """Short, unmarked and unterminated: a title unless it continues the previous line."""


_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]{1,2}|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]{4}")
"""About a word of a script without spaces."""
_BOLD_ONLY = re.compile(r"\*\*[^*]+\*\*[:.]?\Z")
_TAG = re.compile(r"(?:`{3,}|~{3,})\s?\w{0,20}\Z|(?:</?\w[^<>]{0,40}>\s*)+\Z")
_SECTION = re.compile(
    r"(?i:(?:list of |the )?(?:direct |indirect )?implications|rewritten passages?|rephrased passages?|rewrites"
    r"|questions and answers|question-answer (?:format|pairs))\s?[:.]?\s*"
)
_PASSAGE = re.compile(r"(?:Passage|PASSAGE|Original [Pp]assage)\s?:\s*")
_QUESTION = re.compile(
    rf"(?i:{_QUESTION_WORDS})\s?#?(?P<n1>\d{{1,4}})?\s?(?:[:：.)]|[-–—](?=\s))\s*"
    r"|Q\s?(?P<n2>\d{1,4})?\s?[:：]\s*|Q(?P<n3>\d{1,4})[.)]\s*"
)
_ANSWER = re.compile(
    rf"(?i:{_ANSWER_WORDS})\s?#?(?P<n1>\d{{1,4}})?\s?(?:[:：)]|\.(?=\s|\Z)|[-–—](?=\s))\s*"
    r"|A\s?(?P<n2>\d{1,4})?\s?[:：]\s*|A(?P<n3>\d{1,4})[.)]\s*"
)
_INLINE_ANSWERS = "|".join(word.capitalize() for word in _ANSWER_WORDS.split("|")) + "|ANSWER"
_INLINE_ANSWER = re.compile(
    rf"(?<=[\s?.!？。！؟])(?:{_INLINE_ANSWERS})\s?\d{{0,4}}\s?[:：]|(?:(?<=[?？]\s)|(?<=[?？]))A\s?\d{{0,4}}\s?[:：]"
)
_UNLABELLED_PAIR = re.compile(
    rf"[?？؟][\"'”’)」]{{0,2}}\s{{0,3}}(?P<answer>(?:{_INLINE_ANSWERS}|A)\s?\d{{0,4}}\s?[:：])"
)
_CHOICE = re.compile(r"\(?(?P<letter>[A-H])[.)]\s+(?=\S)")
_TASK_START = re.compile(
    r"(?i:(?:now,?\s|next,?\s)?let(?:'|’)?s\s(?:now\s)?"
    r"(?:read|examine|review|analy[sz]e|consider|explore|look at|use|take)\b"
    r".{0,80}\b(?:passage|excerpt|text|paragraph|article)\b"
    r"|(?:please\s)?(?:read|consider|rewrite|rephrase|summari[sz]e)\sthe\s(?:following|passage|text|paragraph)"
    r"|you\sare\s(?:an?|the)\s.{0,40}\b(?:assistant|teacher|expert|model|chatbot)\b"
    r"|<\|\w{1,20}\|>)"
)
_ROLE = re.compile(r"(?:Human|User|System|Assistant)\s?:")
_COURTESY = re.compile(
    r"(?i:certainly|sure|of course|absolutely|okay|ok|natürlich|gerne|bien sûr|por supuesto|claro que sí|certamente"
    r"|конечно|当然|好的|もちろん|물론)\s?[!,.:！，。：]"
)
_HERE_IS = re.compile(
    r"(?i:here(?:'s|’s|\s(?:is|are))|below\s(?:is|are)|i(?:'ve|\shave)\s(?:rewritten|listed))\b"
    r"|(?i:hier (?:ist|sind)|voici|aquí (?:está|tienes)|ecco|aqui est(?:á|ão)|вот|以下|下面|こちら|다음은)(?=.*[:：]\Z)"
)
_REMARK = re.compile(
    r"(?i:(?:each|all|both) of (?:these|the) (?:alternative|version|rewr|rephras|variation|passage)"
    r"|these (?:alternative|version|rewr|rephras|variation|implications|passages)"
    r"|(?:please )?(?:let me know|feel free)\b"
    r"|i hope (?:this|these)\b|please note\b)"
)
_REFUSAL = re.compile(
    r"(?i:(?:i['’]m|i am|we are|we['’]re)\s(?:\w{1,9}\s)?(?:sorry|afraid)\b.{0,40}\b(?:can['’]?t|cannot|unable)\b"
    r"|(?:(?:sorry|unfortunately|i apologi[sz]e),?\s(?:but\s)?)?i\s(?:can['’]?t|cannot|can not|won['’]t(?: be able to)?"
    r"|am\s(?:not able|unable)\sto)\s(?:help(?!\s(?:but|\w+ing)\b)|assist|compl|fulfil|provide|generate|create|write"
    r"|answer|engage|continue|support|do (?:that|this))|i['’]m\s(?:not able|unable)\sto\s"
    r"|as an? (?:\w{1,12} ){0,2}(?:ai|language model)\b.{0,40}\b(?:can['’]?t|cannot|unable|don['’]t)\b"
    r"|(?:es )?tut mir leid\b|leider kann ich\b|ich kann .{0,40}\bnicht (?:weiter)?helfen\b"
    r"|(?:je suis )?désolée?,|je ne peux pas (?:vous )?(?:aider|répondre)|lo siento,|no puedo (?:ayudar|responder)"
    r"|mi dispiace,|non posso (?:aiutar|rispond)|(?:desculpe|sinto muito),|não posso (?:ajudar|responder)"
    r"|het spijt me\b|(?:извините|простите),|к сожалению, я|я не могу (?:помочь|ответить)|przepraszam,|przykro mi"
    r"|üzgünüm|(?:很|非常)?(?:抱歉|对不起|對不起)|我(?:无法|無法|不能)|申し訳(?:ありません|ございません)|すみません|죄송합니다"
    r"|عذر|آسف|أعتذر|क्षमा करें|मुझे खेद)"
)
_ABOUT_EDIT = re.compile(r"(?i:\b(?:implications|versions?|rewrit\w+|rephras\w+|ways|questions|summary|passage)\b)")


def prompt_echoes(prompt: str) -> frozenset[str]:
    """Return the normalised lines of a prompt, and the text after each "Passage:"."""
    lines = [strip_space(line) for line in prompt.splitlines()]
    passages = [line[match.end() :] for line in lines if (match := _PASSAGE.match(line))]
    return frozenset(filter(None, map(normalise, lines + passages)))


def classify(
    raw: str, at: int = 0, *, gap: bool = False, prompt_lines: frozenset[str] = frozenset(), marked: bool = False
) -> Line:
    """Classify one non-blank line, given its index and context (see `Line`).

    A line of `prompt_lines` (see `prompt_echoes`) is an echo unless it is a list item: a teacher may legitimately
    select a sentence of the passage. `marked` makes it a list item without a marker of its own.
    """
    text = strip_space(raw)
    indented = len(raw) - len(raw.lstrip()) >= 2 or raw.startswith("\t")
    line = Line(at, DropReason.MARKER_ONLY, text, marked=marked, gap=gap, indented=indented)
    if _TAG.match(text) or not has_letter(text):
        return line._replace(kind=DropReason.DIGIT_LOOP) if is_digit_loop(text) else line
    stripped = strip_markers(remove_bold(text))
    line = line._replace(text=stripped.text, numbers=stripped.numbers, marked=marked or stripped.marked)
    if not has_letter(stripped.text):
        return line._replace(kind=DropReason.HEADING)
    if (labelled := _labelled(line)) is not None:
        return labelled
    kind, bare = _statement_kind(line, text, prompt_lines)
    short = len(bare) < 40 and len(bare.split()) + len(_UNSPACED.findall(bare)) <= 4 and not bare.endswith((",", ";"))
    weak = kind is Kind.STATEMENT and not line.marked and not is_terminated(bare) and short
    return line._replace(kind=kind, text=bare, weak_heading=weak)


def _labelled(line: Line) -> Line | None:
    """Return `line` as a question, an answer or a pair if it has such a label."""
    bare = line.text
    if match := _QUESTION.match(bare):
        rest = strip_markers(bare[match.end() :])
        line = line._replace(numbers=(*line.numbers, *_numbers_of(match), *rest.numbers))
        split = _INLINE_ANSWER.search(rest.text)
        if split is None:
            return line._replace(kind=Kind.QUESTION, text=rest.text)
        return _pair(line, rest.text[: split.start()], rest.text[split.end() :])
    if match := _ANSWER.match(bare):
        numbers = (*line.numbers, *_numbers_of(match))
        return line._replace(kind=Kind.ANSWER, text=_answer_text(bare[match.end() :], numbers), numbers=numbers)
    if match := _UNLABELLED_PAIR.search(bare):
        return _pair(line, bare[: match.start("answer")], bare[match.end() :])
    return None


def _pair(line: Line, question: str, answer: str) -> Line:
    """Return `line` as a pair, or as a question or an answer if the other is empty."""
    question, answer = strip_space(question), _answer_text(answer, line.numbers)
    if not question:
        return line._replace(kind=Kind.ANSWER, text=answer)
    return line._replace(kind=Kind.PAIR if answer else Kind.QUESTION, text=question, answer=answer)


def _answer_text(written: str, numbers: tuple[int, ...]) -> str:
    """Strip an answer's bullet, and a number that repeats its label's ("Answer 2: 2. Paris")."""
    rest = strip_markers(strip_space(written))
    repeats = not rest.numbers or set(rest.numbers) <= set(numbers)
    return rest.text if repeats and has_letter(rest.text) else strip_space(written)


def _statement_kind(line: Line, written: str, prompt_lines: frozenset[str]) -> tuple[Kind | DropReason, str]:
    """Return kind and text of a line without a question or answer label."""
    bare = line.text
    if _TASK_START.match(bare) or (not line.marked and _ROLE.match(bare)):
        return Kind.TASK_START, bare
    if match := _PASSAGE.match(bare):
        text = bare[match.end() :]
        return Kind.PASSAGE, "" if normalise(text) in prompt_lines else text
    if match := _SECTION.match(bare):
        if match.end() == len(bare):
            return DropReason.ECHOED_PROMPT, bare
        if bare[: match.end()].rstrip().endswith(":"):
            bare = bare[match.end() :]
    if not line.marked:
        if _REFUSAL.match(bare):
            return DropReason.REFUSAL, bare
        if normalise(bare) in prompt_lines:
            return DropReason.ECHOED_PROMPT, bare
        opening = _HERE_IS.match(bare) and (bare.endswith((":", "：")) or _ABOUT_EDIT.search(bare))
        if opening or _COURTESY.match(bare) or _REMARK.match(bare):
            return DropReason.PREAMBLE, bare
    if _CHOICE.match(bare):
        return Kind.CHOICE, bare
    return DropReason.HEADING if _is_heading(bare, written) else Kind.STATEMENT, bare


def _is_heading(bare: str, written: str) -> bool:
    """Return whether a line is a title or a label: it ends with a colon, or is formatted as a heading."""
    words = bare.split()
    if bare.rstrip("*_ ").endswith((":", "：")):
        return len(words) <= 25
    if is_terminated(bare):
        return False
    if written.startswith("#"):
        return True
    start = written.find("**")
    bold = written[start:] if start > 0 and not has_letter(written[:start]) else written
    if not _BOLD_ONLY.match(bold):
        return False
    long_words = [word for word in words if len(word) > 3]
    capitals = sum(word[0].isupper() for word in long_words)
    return len(words) <= 5 or capitals >= 0.6 * len(long_words)
