"""The demo page of the sandbox: a form as an end user meets it, beside a virtual telephone."""

from app.sandbox.demo.page import demo_router

__all__ = ["demo_router"]
