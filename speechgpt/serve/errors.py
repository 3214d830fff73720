"""Errors of the server: their status, and their form in this API and in OpenAI's."""

from __future__ import annotations

import traceback
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response


class ApiError(ValueError):
    """A request that is not answered."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """
        Args:
            status: of HTTP.
            message: the reason: what came, and what is allowed.
            code: OpenAI's word for it.
            param: the field that is wrong.
            headers: of the reply.
        """
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers or {}

    @property
    def kind(self) -> str:
        """OpenAI's kind of error."""
        named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return named.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's form."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def as_api_error(error: BaseException) -> ApiError:
    """The error that a client receives. An error of the server itself is also written to its log."""
    from speechgpt.answers import NotSupported
    from speechgpt.generation.engine import EngineError
    from speechgpt.serve.work import Busy, Closing

    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return ApiError(429, str(error), "rate_limit_exceeded", headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, Closing):
        return ApiError(503, "the server is stopping", "service_unavailable", headers={"Retry-After": "10"})
    if isinstance(error, NotSupported):
        return ApiError(404, str(error), "not_supported")
    if isinstance(error, EngineError):
        return ApiError(502, str(error), "engine_error")
    if isinstance(error, HTTPException):  # of Starlette's router
        return ApiError(error.status_code, error.detail)
    if isinstance(error, (ValueError, OSError)):
        return ApiError(400, str(error))
    traceback.print_exception(error)
    return ApiError(500, "the server has failed; its log says why")


def error_response(error: ApiError, path: str) -> Response:
    """The reply to a request that failed: in OpenAI's form below /v1, {"error": reason} elsewhere."""
    body = error.body() if path.startswith("/v1") else {"error": str(error)}
    return JSONResponse(body, error.status, error.headers)
