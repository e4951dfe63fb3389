"""E-mail: messages and mailboxes, each message with subject, sender and date."""

from __future__ import annotations

import re
from email import message_from_bytes, policy
from email.message import EmailMessage

from evaluation.common.text import clean_text
from pipelines.inbox.readers.html import HTML
from pipelines.inbox.readers.text import OLE, Block, Extract, Reader, UnreadableError, blocks_of, one_line, paragraphs

_NEXT = re.compile(rb"^From \S.*\r?\n", re.MULTILINE)
"""Start of a message in a mailbox."""


def read_mail(content: bytes) -> Extract:
    """Return a message (EML), or those of a mailbox (MBOX), with the date of the only one as the day it holds from."""
    if content.startswith(OLE):
        raise UnreadableError("is an Outlook .msg file; save the message as .eml")
    letters = _NEXT.split(content) if content.startswith(b"From ") else [content]
    messages = [message_from_bytes(each, policy=policy.default) for each in letters if each.strip()]
    attachments: list[str] = []
    blocks = [block for message in messages for block in _message(message, attachments)]
    date, subject = messages[0]["date"], one_line(clean_text(messages[0]["subject"] or ""))
    fields = {"effective": date.datetime.date().isoformat()} if date and date.datetime and not messages[1:] else {}
    notes = (f"left out: {len(attachments)} attachments ({', '.join(attachments[:3])})",) if attachments else ()
    return Extract(blocks_of(blocks), "" if messages[1:] else subject, fields, notes)


def _message(message: EmailMessage, attachments: list[str]) -> list[Block]:
    """Return subject, sender and text of a message and of those attached to it; other attachments are named."""
    if not message["from"] and not message["subject"]:
        raise UnreadableError("has neither sender nor subject: it is no message")
    facts = {name: one_line(str(message[name] or "")) for name in ("From", "To", "Date")}
    blocks = [
        Block(str(message["subject"] or "No subject"), 2),
        Block("\n".join(f"{name}: {value}" for name, value in facts.items() if value)),
    ]
    body = message.get_body(("plain", "html"))
    if body is not None and body.get_content_subtype() == "html":
        blocks += HTML.read(b'<meta charset="utf-8">' + body.get_content().encode("utf-8", "replace")).blocks
    elif body is not None:
        blocks += paragraphs(body.get_content())
    for part in message.iter_attachments():
        if part.get_content_type() == "message/rfc822":
            blocks += _message(part.get_content(), attachments)
        else:
            attachments.append(part.get_filename() or part.get_content_type())
    return blocks


MAIL = Reader("mail", (".eml", ".mbox", ".msg"), read_mail)
