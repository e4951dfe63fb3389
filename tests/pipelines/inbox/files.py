"""Files of the formats that the inbox reads, made by hand or by the libraries that write them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from pipelines.inbox.documents import InboxDocument

LONG_LINE = "Refunds are paid within ten days after the parcel has come back"
PAGES = [
    ["Chapter one", LONG_LINE, "to us.", "", "Cards come first (always)."],
    ["Chapter two", "Gift cards are not refunded."],
]
"""Lines of a PDF."""


def document(text: str = "Cranes nest at Lake Orrin.", source: str = "notes", **more: object) -> InboxDocument:
    """Return a document; titles are empty unless given."""
    return InboxDocument.model_validate({"text": text, "source": source, **more})


def pdf(pages: Sequence[Sequence[str]]) -> bytes:
    """Return a PDF with one line of Helvetica for each text; a page without any has no text at all."""
    shown = [" T* ".join(f"({_escaped(line)}) Tj" for line in lines) for lines in pages]
    return _pdf_of([f"BT /F1 11 Tf 13 TL 50 780 Td {page} ET" if page else "" for page in shown])


def placed_pdf(pages: Sequence[Sequence[tuple[float, float, str]]]) -> bytes:
    """Return a PDF with texts of Helvetica at places: left and bottom in points, from the lower left corner."""
    return _pdf_of(
        [" ".join(f"BT /F1 9 Tf {x} {y} Td ({_escaped(text)}) Tj ET" for x, y, text in page) for page in pages]
    )


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def _pdf_of(streams: Sequence[str]) -> bytes:
    """Return a PDF with the content of its pages."""
    count = len(streams)
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(count))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for i, stream in enumerate(streams):
        objects += [
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 842] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {5 + 2 * i} 0 R >>",
            f"<< /Length {len(stream.encode('cp1252'))} >>\nstream\n{stream}\nendstream",
        ]
    content, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(content))
        content += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(objects) + 1
    content += f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\n"
    return (content + f"startxref\n{content.index('xref')}\n%%EOF\n").encode("cp1252")


def changed_pdf(
    content: bytes, *, title: str = "", outline: Mapping[str, int] | None = None, user_password: str | None = None
) -> bytes:
    """Return a PDF with a title, an outline (page by entry) or a password."""
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(content)))
    if title:
        writer.add_metadata({"/Title": title})
    for entry, page in (outline or {}).items():
        writer.add_outline_item(entry, page)
    if user_password is not None:
        writer.encrypt(user_password, "owner", algorithm="RC4-128")
    written = io.BytesIO()
    writer.write(written)
    return written.getvalue()


def word_file() -> bytes:
    """Return a DOCX file with a title, headings, a list, and a table between two paragraphs."""
    from docx import Document

    made = Document()
    made.add_heading("Refund handbook", 0)
    made.add_heading("Deadlines", 1)
    made.add_paragraph("Refunds are paid within ten days.")
    made.add_paragraph("Cards first", style="List Bullet")
    table = made.add_table(rows=2, cols=3)
    for cell, text in zip(table.rows[0].cells, ("Country", "Days", "Fee"), strict=True):
        cell.text = text
    table.rows[1].cells[0].text = "Norway"
    table.rows[1].cells[1].merge(table.rows[1].cells[2]).text = "ten"
    made.add_heading("Exceptions", 2)
    made.add_paragraph("Gift cards are not refunded.")
    written = io.BytesIO()
    made.save(written)
    return written.getvalue()
