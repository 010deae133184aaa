"""The check of foreign addresses, asked of a site on this machine."""

import http.server
import threading

import pytest

from scripts import check_links


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers with the number that the path names."""

    def do_GET(self):
        self.send_response(int(self.path.strip("/")))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words):
        """Say nothing."""


@pytest.fixture(scope="module")
def host():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("code", "wanted"), [(200, ""), (403, ""), (404, "404"), (500, "500")]
)
def test_what_answers_is_there(host, code, wanted):
    assert check_links.complaint(f"{host}{code}") == wanted


def test_nobody_at_the_address():
    assert check_links.complaint("http://127.0.0.1:1/")


def test_the_command_names_the_page_and_the_address(host, tmp_path, capsys):
    good, gone = f"{host}200", f"{host}404"
    page = tmp_path / "a.html"
    page.write_text(f'<a href="{good}#x">x</a><a href="{good}">y</a><a href="b">b</a>')
    assert check_links.main([str(tmp_path)]) == 0
    assert "1 addresses, 0 do not answer" in capsys.readouterr().out
    page.write_text(f'<a href="{good}">x</a><a href="{gone}">y</a>')
    assert check_links.main([str(tmp_path)]) == 1
    assert f"a.html: {gone}: 404" in capsys.readouterr().out


def test_an_empty_site_is_no_success(tmp_path, capsys):
    assert check_links.main([str(tmp_path)]) == 1
    assert "Run `make book` first" in capsys.readouterr().out
