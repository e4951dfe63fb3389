"""Secrets and personal data by hand, and texts that must stay as they are."""

from __future__ import annotations

import json
import time

import pytest

from pipelines.inbox.redaction import redact

_JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
_BODY = "abcDEF1234567890abcDEF1234567890"


@pytest.mark.parametrize(
    "key",
    [
        "AKIAIOSFODNN7EXAMPLE",
        f"sk-proj-{_BODY}T3BlbkFJ{_BODY}",
        f"sk-ant-api03-{_BODY}{_BODY}-{_BODY}AA",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        f"github_pat_11ABCDEFG0abcdefghijkl_{_BODY}{_BODY}",
        "glpat-abcdefghijklmnopqrst",
        "xoxb-123456789012-123456789012-abcdefghijklmnopqrstuvwx",
        "sk_live_abcdefghijklmnopqrstuvwx",
        "AIzaSyA1234567890abcdefghijklmnopqrstuvw",
        "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
        "npm_abcdefghijklmnopqrstuvwxyz0123456789",
        "SG.abcdefghijklmnopqrstuv.abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG",
        "110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw0",
        _BODY,
    ],
)
def test_key_of_a_common_form_is_replaced_and_the_words_around_it_stay(key: str) -> None:
    assert redact(f"I use {key} for it.") == ("I use [secret] for it.", {"secret": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIB\nq2/+=\n-----END RSA PRIVATE KEY-----\nSo?", "[secret]\nSo?"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz, cut off", "[secret]"),
        ("https://ann:hunter2@files/a", "https://ann:[secret]@files/a"),
        ("https://ann:hunter2@files.example/a", "https://ann:[email]/a"),  # whichever it is taken for
        ("password: hunter2secret", "password: [secret]"),
        ("It is DB_PASSWORD=hunter2secret", "It is DB_PASSWORD=[secret]"),
        ('{"password": "all of it, spaces too"}', '{"password": "[secret]"}'),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "aws_secret_access_key = [secret]"),
        ("My password is hunter2secret.", "My password is [secret]."),
        (f"Authorization: Bearer {'0123456789abcdef' * 2}", "Authorization: Bearer [secret]"),
        ("to jane.doe+x@mail.example.co.uk, müller@exämple.de", "to [email], [email]"),
        ("call +49 30 901820 or (415) 555-2671", "call [phone] or [phone]"),
        ("ring 020 7946 0958 today", "ring [phone] today"),
        ("IBAN DE89 3704 0044 0532 0130 00 THANKS", "IBAN [iban] THANKS"),
        ("GB82WEST12345698765432", "[iban]"),
        ("card 4111 1111 1111 1111 exp 12/28", "card [card] exp 12/28"),
        ("378282246310005", "[card]"),
    ],
)
def test_secret_and_personal_data_are_replaced_by_their_kind(text: str, expected: str) -> None:
    found, counts = redact(text)
    assert (found, sum(counts.values())) == (expected, expected.count("["))


@pytest.mark.parametrize(
    "text",
    [
        "The contract runs until 2029-12-31.",
        "Invoice 2026-000123 of 1,234.56 EUR is due on 12/11/2026.",
        "Version 3.12.0, commit 4f2a9c1b7e4f2a9c1b7e4f2a9c1b7e4f2a9c1b7e",
        "The password policy asks for 12 characters. The password is wrong.",
        "What is a secret key? The API key is kept in the vault. Secret: nobody knows",
        "ISBN 978-3-16-148410-0, uuid 123e4567-e89b-12d3-a456-426614174000",
        "The population was 83,240,525 in 2020, at 299 792 458 m/s; pi is 3.14159265358979",
        "scikit-learn's sk_learn_preprocessing_pipeline and key_performance_indicator_for_the_year_2026",
        "card 4111 1111 1111 1112, IBAN DE90 3704 0044 0532 0130 02",
        "https://docs.example.com/a/b?page=2 at 12:30:45, 52.5200, 13.4050; ask @ann",
        "2019 2020 2021 2022 2023, 1234567890123456 widgets, call 911",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == (text, {})


def test_all_texts_of_a_conversation_are_redacted_and_nothing_else_changes() -> None:
    arguments = json.dumps({"to": "ann@mail.example", "password": "hunter2 and more"})
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Mail ann@mail.example."}], "name": "ben"},
        {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "send", "arguments": arguments}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "name": "log_in", "input": {"api_key": "swordfish"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": None},
    ]
    found, counts = redact(messages)
    assert json.loads(found[1]["tool_calls"][0]["function"]["arguments"]) == {
        "to": "[email]",
        "password": "[secret]",
    }
    assert found[0] == {"role": "user", "content": [{"type": "text", "text": "Mail [email]."}], "name": "ben"}
    assert found[2]["content"][0]["input"] == {"api_key": "[secret]"}
    assert found[3] == messages[3]
    assert counts == {"email": 2, "secret": 2}


@pytest.mark.parametrize("piece", ["1 ", "://a:", "a.", "DE89 ", "-----BEGIN PRIVATE KEY", "aB1-", "password: "])
def test_hostile_text_takes_no_more_than_seconds(piece: str) -> None:
    started = time.process_time()
    redact((piece * 20_000)[:20_000])
    assert time.process_time() - started < 20.0
