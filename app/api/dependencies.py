"""What routes are given: the service, and the client that calls."""

from typing import Annotated

from fastapi import Depends, Request, Security

from app.api.auth import Authenticate
from app.verification.service import VerificationService


async def _service(request: Request) -> VerificationService:
    service: VerificationService = request.state.service
    return service


Service = Annotated[VerificationService, Depends(_service)]
Client = Annotated[str, Security(Authenticate())]
