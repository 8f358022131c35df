"""The use case of redeeming a token: it is accepted once."""

from app.verification.errors import TokenAlreadyRedeemed, TokenInvalid
from app.verification.model import Proof
from app.verification.ports import ProofTokens, Redemptions


async def redeem(tokens: ProofTokens, redemptions: Redemptions, *, client: str, token: str, purpose: str) -> Proof:
    """Accept a token once. A refused token is not used up.

    Raise TokenInvalid, TokenExpired, TokenAlreadyRedeemed, or StoreUnavailable (it may have been redeemed).
    """
    proof = tokens.verify(token, client=client)
    if proof.purpose != purpose:
        raise TokenInvalid
    if not await redemptions.redeem(proof.verification_id, proof.expires_at):
        raise TokenAlreadyRedeemed
    return proof
