"""What routes are given: the service, the tokens, and the client that calls."""

from typing import Annotated

from fastapi import Depends, Request, Security

from app.api.auth import Authenticate
from app.verification.ports import ProofTokens, Redemptions
from app.verification.service import VerificationService


async def _service(request: Request) -> VerificationService:
    service: VerificationService = request.state.service
    return service


async def _tokens(request: Request) -> ProofTokens:
    tokens: ProofTokens = request.state.tokens
    return tokens


async def _redemptions(request: Request) -> Redemptions:
    redemptions: Redemptions = request.state.redemptions
    return redemptions


Service = Annotated[VerificationService, Depends(_service)]
Tokens = Annotated[ProofTokens, Depends(_tokens)]
RedeemedTokens = Annotated[Redemptions, Depends(_redemptions)]
Client = Annotated[
    str,
    Security(
        Authenticate(
            "api_keys",
            scheme_name="ApiKey",
            description="`plusofon-verify keygen` makes one. In sandbox mode none is needed.",
        )
    ),
]
