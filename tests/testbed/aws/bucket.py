"""A bucket: moto's S3 behind a door that checks what S3 checks and moto does not.

The signature of each request, who made it, for which region, and whether it has expired. `/lab` makes answers fail or
slow, and tells what was asked. Everything is in memory.
"""

import argparse
import datetime
import hashlib
import hmac
import json
import threading
import time
from urllib.parse import parse_qsl, quote

from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response


def refusal(status, code, message="", region=""):
    more = f"<Region>{region}</Region>" if region else ""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"
    return Response(body, status=status, mimetype="application/xml")


class Door:
    def __init__(self, options):
        self.region = options.region
        self.keys = {options.access_key: (options.secret_key, "")}
        self.inner = create_backend_app("s3")
        self.lock = threading.Lock()
        self.faults, self.asked = [], []

    def __call__(self, environ, start_response):
        request = Request(environ)
        if request.path.startswith("/lab"):
            return self.lab(request)(environ, start_response)
        answer = self.checked(request)
        if answer is None:
            fault = self.fault(request.method)
            if fault and fault.get("delay"):
                time.sleep(fault["delay"])
            if fault and fault.get("answer"):
                answer = refusal(fault["answer"], fault.get("code", "InternalError"))
        if answer is None:
            # The signature is checked, and moto would look at it in its own way.
            environ["QUERY_STRING"] = ""
            environ["HTTP_AUTHORIZATION"] = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"
            environ["HTTP_HOST"] = "127.0.0.1"

            def noted(status, headers, exc_info=None):
                self.note(request, int(status.split()[0]))
                return start_response(status, headers, exc_info)

            return self.inner(environ, noted)
        self.note(request, answer.status_code)
        return answer(environ, start_response)

    def note(self, request, status):
        key = request.args.get("X-Amz-Credential", "").split("/")[0]
        with self.lock:
            self.asked.append({"method": request.method, "path": request.path, "status": status, "key": key})

    def fault(self, method):
        with self.lock:
            for fault in self.faults:
                if fault.get("method", method) == method and fault["times"] > 0:
                    fault["times"] -= 1
                    return fault
        return None

    def lab(self, request):
        with self.lock:
            if request.method == "POST":
                order = json.loads(request.get_data() or b"{}")
                self.faults += order.get("faults", [])
                for key in order.get("keys", []):
                    self.keys[key["id"]] = (key["secret"], key.get("token", ""))
                for key in order.get("revoked", []):
                    self.keys.pop(key, None)
            return Response(json.dumps(self.asked), mimetype="application/json")

    def checked(self, request):
        """Why a request is refused, or nothing."""
        query = dict(parse_qsl(request.query_string.decode(), keep_blank_values=True))
        if query.get("X-Amz-Algorithm") != "AWS4-HMAC-SHA256":
            return refusal(403, "AccessDenied", "Access Denied")
        try:
            key, day, region, service, end = query["X-Amz-Credential"].split("/")
            made = datetime.datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ")
            lives = int(query["X-Amz-Expires"])
        except (KeyError, ValueError):
            return refusal(400, "AuthorizationQueryParametersError", "malformed")
        if key not in self.keys:
            return refusal(403, "InvalidAccessKeyId")
        if region != self.region:
            return refusal(400, "AuthorizationQueryParametersError", "wrong region", self.region)
        if (service, end) != ("s3", "aws4_request") or day != made.strftime("%Y%m%d") or not 1 <= lives <= 604800:
            return refusal(400, "AuthorizationQueryParametersError", "malformed")
        secret, token = self.keys[key]
        if query.get("X-Amz-Security-Token", "") != token:
            return refusal(400, "InvalidToken")
        if self.signature(request, query, secret) != query.get("X-Amz-Signature"):
            return refusal(403, "SignatureDoesNotMatch")
        now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
        if made > now + datetime.timedelta(minutes=15):
            return refusal(403, "RequestTimeTooSkewed")
        if now > made + datetime.timedelta(seconds=lives):
            return refusal(403, "AccessDenied", "Request has expired")
        return None

    def signature(self, request, query, secret):
        path = request.environ.get("RAW_URI", request.full_path).split("?")[0]
        pairs = sorted((quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in query.items() if k != "X-Amz-Signature")
        names = query.get("X-Amz-SignedHeaders", "").split(";")
        headers = "".join(f"{name}:{request.headers.get(name, '').strip()}\n" for name in names)
        parts = [request.method, path, "&".join(f"{k}={v}" for k, v in pairs), headers, ";".join(names), "UNSIGNED-PAYLOAD"]
        canonical = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        scope = query["X-Amz-Credential"].split("/", 1)[1]
        text = f"AWS4-HMAC-SHA256\n{query['X-Amz-Date']}\n{scope}\n{canonical}"
        key = b"AWS4" + secret.encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


class Quiet(WSGIRequestHandler):
    def log_request(self, *_):
        pass


def main():
    arguments = argparse.ArgumentParser()
    for name in ["port", "region", "bucket", "access-key", "secret-key"]:
        arguments.add_argument(f"--{name}", required=True)
    options = arguments.parse_args()
    door = Door(options)
    environ = {
        "REQUEST_METHOD": "PUT", "PATH_INFO": f"/{options.bucket}", "QUERY_STRING": "", "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": options.port, "HTTP_HOST": "127.0.0.1", "wsgi.url_scheme": "http", "CONTENT_LENGTH": "0",
        "HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request",
    }
    import io

    environ["wsgi.input"] = io.BytesIO()
    list(door.inner(environ, lambda *_: None))
    make_server("127.0.0.1", int(options.port), door, threaded=True, request_handler=Quiet).serve_forever()


if __name__ == "__main__":
    main()
