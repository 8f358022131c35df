"""The routes of tokens: the public keys that verify them, and their redemption."""

from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from app.api.dependencies import Client, ContainerDep
from app.api.responses import JsonAnswer, answers
from app.api.schemas import Purpose, ReferenceView, TestFlag, example
from app.verification.tokens import redeem

router = APIRouter(tags=["tokens"])

_ID = "vrf_0a11b22c33d44e55f667788"
_TOKEN = "eyJ0eXAiOiJKV1QiLCJhbGciOiJFUzI1NiIsImtpZCI6IuKApiJ9.eyJzdWIiOiIrNzkwMDEyMzQ1NjcifQ.c2lnbmF0dXJl"  # noqa: S105 - an example
_EXAMPLE = example("Before a new password is set", token=_TOKEN, purpose="password_reset")
_JWK = {
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",  # of RFC 7515, appendix A.3
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    "use": "sig",
    "alg": "ES256",
    "kid": "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U",
}


class Jwk(BaseModel):
    """A public key (RFC 7517)."""

    kty: Literal["EC"]
    crv: Literal["P-256"]
    x: str
    y: str
    use: Literal["sig"]
    alg: Literal["ES256"]
    kid: Annotated[str, Field(description="which key of the set signed a token: its header has the same")]


class JwkSet(BaseModel):
    """The public keys: first the one that signs now, then earlier ones and the next."""

    keys: Annotated[list[Jwk], Field(examples=[[_JWK]])]


class RedeemTokenRequest(BaseModel):
    """The token, and the purpose that it has to prove."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token: Annotated[str, Field(min_length=1, max_length=4096, description="as `check` returned it", examples=[_TOKEN])]
    purpose: Purpose


class RedeemedToken(BaseModel):
    """The token was valid, and is redeemed now."""

    redeemed: Literal[True] = True
    verification_id: Annotated[str, Field(examples=[_ID])]
    phone: Annotated[str, Field(description="E.164, in full", examples=["+79001234567"])]
    purpose: Annotated[str, Field(examples=["password_reset"])]
    test: TestFlag = False
    reference: ReferenceView = None


@router.get(
    "/.well-known/jwks.json",
    response_model=JwkSet,
    operation_id="getTokenKeys",
    summary="The public keys that verify tokens",
    responses=answers(HTTPStatus.OK, JwkSet),
)
async def jwks(container: ContainerDep) -> Response:
    """Publish the keys, with which a backend verifies a token by itself.

    It must accept only `ES256`, find the key by `kid`, and check `iss`, `aud` (its own client name), `exp` (with 30
    seconds of leeway for clock skew) and `purpose` (RFC 8725). To accept a token only once, use
    `POST /verify/token/redeem` instead.
    """
    return JSONResponse(container.tokens.jwks, headers={"Cache-Control": "public, max-age=300"})


@router.post(
    "/verify/token/redeem",
    response_model=RedeemedToken,
    operation_id="redeemToken",
    summary="Accept a token, once",
    response_description="The token was valid, and is redeemed now.",
    responses=answers(
        HTTPStatus.OK,
        RedeemedToken,
        problems=(
            "validation-failed", "unauthorized", "token-invalid", "token-expired", "token-already-redeemed",
            "store-unavailable",
        ),
    ),
)  # fmt: skip
async def redeem_token(
    request: Annotated[RedeemTokenRequest, Body(openapi_examples={"password": _EXAMPLE})],
    client: Client,
    container: ContainerDep,
) -> Response:
    """Verify a token and redeem it, in one step: of any number of requests with it, exactly one is answered with 200.

    For what a proof may do only once, such as setting a new password. A token of another client, or for another
    `purpose`, is invalid like a forged one, and is not redeemed by the attempt.
    """
    tokens, redemptions = container.tokens, container.stores.redemptions
    proof = await redeem(tokens, redemptions, client=client, token=request.token, purpose=request.purpose)
    redeemed = RedeemedToken(
        verification_id=proof.verification_id,
        phone=proof.phone.e164,
        purpose=proof.purpose,
        test=proof.test,
        reference=proof.reference,
    )
    return JsonAnswer(redeemed)
