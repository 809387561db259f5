"""What the service can do: methods and families."""

from fastapi import APIRouter

from api.schemas import FamilyList, FamilyObject, MethodList, MethodObject
from core.catalog import METHODS
from core.families import FAMILIES

router = APIRouter(prefix="/v1", tags=["catalogue"])


@router.get("/methods")
def list_methods() -> MethodList:
    """The pruning methods, with the JSON schema of their options."""
    return MethodList(data=[MethodObject.of(entry) for entry in METHODS])


@router.get("/families")
def list_families() -> FamilyList:
    """The architectures that can be pruned, and the tasks each may be pruned for."""
    return FamilyList(data=[FamilyObject.of(family) for family in FAMILIES])
