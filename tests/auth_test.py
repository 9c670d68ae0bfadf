"""--api-key, other web origins, and that keys stay out of the log."""

import openai
import pytest

from raw_http import exchange, get, post

KEYS = ["first-key", "second key"]
OPEN = ["/health", "/ping", "/version", "/metrics"]
GUARDED = ["/v1/models", "/v1/models/x", "/nowhere", "/v1/chat/completions", "/tokenize"]


@pytest.fixture(scope="module")
def guarded(module_serve):
    server = module_serve("--api-key", *KEYS, environment={"VLLM_API_KEY": "third-key"})
    yield server
    for key in (*KEYS, "third-key", "wrong-key"):
        assert key not in server.log()


def is_refused(response):
    if response.status_code != 401:
        return False
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "authentication_error" and error["code"] == 401
    assert response.headers["www-authenticate"] == "Bearer"
    return True


def test_what_is_open(guarded):
    for path in OPEN:
        assert guarded.http.get(path).status_code == 200


@pytest.mark.parametrize("path", GUARDED)
def test_what_is_guarded(guarded, path):
    for headers in (
        {},
        {"Authorization": "Bearer wrong-key"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer first-ke"},
        {"Authorization": "Bearer first-keyx"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "first-key"},
        {"X-Api-Key": "wrong-key"},
        {"X-Api-Key": ""},
    ):
        assert is_refused(guarded.http.get(path, headers=headers))
        assert is_refused(guarded.http.post(path, json={"prompt": "x"}, headers=headers))


def test_keys(guarded):
    for key in (*KEYS, "third-key"):
        for headers in ({"Authorization": f"Bearer {key}"}, {"X-Api-Key": key}, {"authorization": f"bearer {key}"}):
            assert guarded.http.get("/v1/models", headers=headers).status_code == 200
            response = guarded.post("/tokenize", {"prompt": "x"}, headers=headers)
            assert response.status_code == 200


def test_openai_client(guarded):
    assert guarded.openai(api_key="first-key").models.list().data
    with pytest.raises(openai.AuthenticationError):
        guarded.openai(api_key="wrong-key").models.list()


def test_a_body_without_a_key_is_not_read(guarded):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n"
    status, _, _ = exchange(guarded, head)
    assert status == 401
    status, _, _ = exchange(guarded, post("/v1/completions", b"not JSON"))
    assert status == 401


ORIGIN = "https://app.example"


def preflight(server, origin):
    return server.http.options(
        "/v1/chat/completions",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type, authorization",
        },
    )


def test_other_origins_are_shut_out_unless_named(server, module_serve):
    assert "access-control-allow-origin" not in preflight(server, ORIGIN).headers
    opened = module_serve("--allowed-origins", f'["{ORIGIN}"]', "--api-key", "key")
    allowed = preflight(opened, ORIGIN)
    assert allowed.status_code in (200, 204)
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in allowed.headers
    assert "access-control-allow-origin" not in preflight(opened, "https://evil.example").headers
    response = opened.http.get("/v1/models", headers={"Origin": ORIGIN})
    assert response.status_code == 401 and response.headers["access-control-allow-origin"] == ORIGIN


def test_log_injection(server):
    exchange(server, get("/nowhere%0d%0a12:00:00.000%20error%20%20%20injected%1b[31m"))
    log = server.log()
    assert "injected" in log and "\x1b[31m" not in log
    assert not any(line.startswith("12:00:00.000 error") for line in log.splitlines())


def test_prompts_are_not_logged(server):
    server.answer("/v1/completions", {"prompt": "a very private prompt", "max_tokens": 1})
    assert "very private" not in server.log()
