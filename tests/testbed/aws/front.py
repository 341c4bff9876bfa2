"""The HTTP front: takes every request, keeps the log of calls, injects faults, and hands the call to moto.

Errors have the form of the service that was called. What moto does not know is refused as AWS refuses it, not with a
page that an SDK takes for a server in trouble.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import time
import traceback
from email.utils import formatdate
from typing import Any, Callable, Iterable
from urllib.parse import parse_qs, parse_qsl
from xml.sax.saxutils import escape

import faults
import lab
import users
from errors import CloudError
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from world import WORLD

NAMESPACE = "http://autoscaling.amazonaws.com/doc/2011-01-01/"
STATUS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Not Allowed",
}


class Front:
    """A WSGI application."""

    def __init__(self) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        body = _body(environ)
        if path.startswith("/lab/"):
            with WORLD.lock:
                WORLD.clock.advance()
                query = {
                    name: values[-1] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()
                }
                headers = {name[5:]: value for name, value in environ.items() if name.startswith("HTTP_")}
                status, kind, text = lab.answer(
                    environ["REQUEST_METHOD"], path.removeprefix("/lab/"), query, headers, body
                )
            return _respond(start_response, status, kind, text.encode())
        return self.call(environ, start_response, body)

    def call(
        self, environ: dict[str, Any], start_response: Callable[..., Any], body: bytes
    ) -> Iterable[bytes]:
        service, action, params = _read_call(environ, body)
        with WORLD.lock:
            WORLD.clock.advance()
            fitting = faults.matching(service, action, params)
        for fault in fitting:
            if fault.kind == "latency":
                time.sleep(fault.seconds)
        failing = next((fault for fault in fitting if fault.kind == "error"), None)
        with WORLD.lock:
            WORLD.clock.advance()
            noted = WORLD.note(service, action, params)
            try:
                if failing:
                    raise CloudError(failing.code, failing.message, failing.status)
                users.check(
                    service, action, environ.get("HTTP_AUTHORIZATION", ""), environ.get("HTTP_X_AMZ_DATE")
                )
                faults.check_rate(service, action)
                with users.unguarded(action):
                    status, headers, answer = self.ask_moto(environ, body)
                code = _code_in(answer) if int(status.split()[0]) >= 400 else "ok"
                if status.startswith(("401", "403")):
                    raise _not_allowed(service, action, code, int(status.split()[0]))
            except CloudError as error:
                status, headers, answer = _error(service, error)
                code = error.code
            except NotImplementedError as error:
                refusal = CloudError("InvalidAction", f"The action {action} is not known here: {error}")
                status, headers, answer = _error(service, refusal)
                code = refusal.code
            except Exception as error:  # of moto or ours: said in the log, answered as AWS does
                print(traceback.format_exc(), file=sys.stderr, flush=True)
                if type(error).__name__ == "OperationNotFoundError":
                    status, headers, answer = _error(service, CloudError("InvalidAction", str(error)))
                else:
                    WORLD.clock.bugs.append(f"{action}: {type(error).__name__}: {error}")
                    status, headers, answer = _error(service, CloudError("InternalError", str(error), 500))
                code = "InternalError"
            noted["answer"] = code
        if any(fault.kind == "cut" for fault in fitting):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError("cut by a fault")
        start_response(
            status, [(name, value) for name, value in headers if name.lower() != "date"] + [_date()]
        )
        return [answer]

    def ask_moto(self, environ: dict[str, Any], body: bytes) -> tuple[str, list[tuple[str, str]], bytes]:
        seen: dict[str, Any] = {}

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            seen["status"], seen["headers"] = status, headers
            return lambda data: None

        environ["wsgi.input"] = _Body(body)
        result = self.moto(environ, start)
        try:
            answer = b"".join(result)
        finally:
            if hasattr(result, "close"):
                result.close()
        return seen["status"], seen["headers"], answer


def _Body(body: bytes) -> Any:
    import io

    return io.BytesIO(body)


def _body(environ: dict[str, Any]) -> bytes:
    length = int(environ.get("CONTENT_LENGTH") or 0)
    return environ["wsgi.input"].read(length) if length else b""


def _read_call(environ: dict[str, Any], body: bytes) -> tuple[str, str, dict[str, Any]]:
    """The service by the scope of the signature; parameters by name, those of a list together."""
    scope = re.search(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    service = scope.group(1) if scope else "unknown"
    target = environ.get("HTTP_X_AMZ_TARGET")
    if target:
        try:
            return service, target.split(".")[-1], json.loads(body or b"{}")
        except ValueError:
            return service, target.split(".")[-1], {}
    pairs = parse_qsl(body.decode(errors="replace"), keep_blank_values=True)
    pairs += parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    action, params = "", {}
    for name, value in pairs:
        if name == "Action":
            action = value
        elif name != "Version":
            plain = re.sub(r"\.member(?=\.|$)|\.\d+(?=\.|$)", "", name)
            if plain != name:
                params.setdefault(plain, []).append(value)
            else:
                params[plain] = value
    if not scope:
        service = users.UNSIGNED.get(action, service)
    return service, action, params


def _code_in(answer: bytes) -> str:
    found = re.search(rb'<Code>([^<]+)</Code>|"__type": ?"([^"]+)"', answer)
    return (found.group(1) or found.group(2)).decode() if found else "error"


def _not_allowed(service: str, action: str, code: str, status: int) -> CloudError:
    """moto answers all services in one form, and names EC2's refusal as the others do."""
    if service == "ec2" and code == "AccessDenied":
        code = "UnauthorizedOperation"
    return CloudError(code, f"The caller is not allowed to perform {service}:{action}", status)


def _error(service: str, error: CloudError) -> tuple[str, list[tuple[str, str]], bytes]:
    status = f"{error.status} {STATUS.get(error.status, 'Error')}"
    code, message = escape(error.code), escape(error.message)
    if service == "ec2":
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
            "<RequestID>lab</RequestID></Response>"
        )
    elif service == "ec2-instance-connect":
        text = json.dumps({"__type": error.code, "Message": error.message})
        return status, [("Content-Type", "application/x-amz-json-1.1")], text.encode()
    else:
        who = "Sender" if error.status < 500 else "Receiver"
        text = (
            f'<ErrorResponse xmlns="{NAMESPACE}"><Error><Type>{who}</Type><Code>{code}</Code>'
            f"<Message>{message}</Message></Error><RequestId>lab</RequestId></ErrorResponse>"
        )
    return status, [("Content-Type", "text/xml;charset=UTF-8")], text.encode()


def _date() -> tuple[str, str]:
    """The cloud's clock, by which the SDKs set theirs right."""
    return "Date", formatdate(time.time() + WORLD.settings.skew_seconds, usegmt=True)


def _respond(start_response: Callable[..., Any], status: int, kind: str, text: bytes) -> Iterable[bytes]:
    start_response(
        f"{status} {STATUS.get(status, 'Error')}",
        [("Content-Type", kind), ("Content-Length", str(len(text)))],
    )
    return [text]
