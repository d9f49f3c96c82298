"""Output that is there at once."""

import io

from rmpi.places.writing import write_flush


class File(io.StringIO):
    flushed = ""

    def flush(self):
        self.flushed = self.getvalue()


def test_a_string_has_its_quotes_and_is_there(capsys):
    write_flush("Hello World")
    write_flush(7)
    assert capsys.readouterr().out == "'Hello World'7"


def test_to_a_file():
    file = File()
    write_flush("Hello", file)
    assert file.flushed == "'Hello'"
