"""The use case of a proof: a token is accepted once."""

from app.verification.errors import TokenAlreadyRedeemed, TokenInvalid
from app.verification.model import Proof
from app.verification.ports import ProofTokens, Redemptions


async def redeem(tokens: ProofTokens, redemptions: Redemptions, *, client: str, token: str, purpose: str) -> Proof:
    """Accept a token once. What is invalid, expired or meant for another purpose is refused before it is used up.

    Raises:
        TokenInvalid, TokenExpired, TokenAlreadyRedeemed: it proves nothing here.
        StoreUnavailable: it may have been used up, so it cannot be accepted.

    """
    proof = tokens.verify(token, client=client)
    if proof.purpose != purpose:
        raise TokenInvalid
    if not await redemptions.redeem(proof.verification_id, proof.expires_at):
        raise TokenAlreadyRedeemed
    return proof
