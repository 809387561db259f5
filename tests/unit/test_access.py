"""The names that a service was given, by the setting."""

from starlette.responses import PlainTextResponse

from api.access import Access
from api.middleware import RequestContext
from tests.problems import assert_problem
from tests.servers import served


def behind_access(hosts):
    """Something that is there for whoever is let in."""
    return served(RequestContext(Access(PlainTextResponse("in"), hosts=hosts, keys=[])))


def test_the_names_of_the_setting_are_all_that_count():
    with behind_access(hosts=["Prune.example", "[fd00::1]"]) as http:
        for host in ("prune.example", "PRUNE.example:8443", "[FD00::1]:8000"):
            assert http.get("/v1/jobs", headers={"Host": host}).status_code == 200
        for host in ("localhost", "a.prune.example"):
            assert_problem(http.get("/v1/jobs", headers={"Host": host}), 421, "misdirected_request")


def test_where_any_name_will_do_a_page_has_to_be_of_the_one_asked_for():
    with behind_access(hosts=["*"]) as http:
        own = {"Host": "prune.example", "Origin": "https://prune.example:8443"}
        assert http.post("/v1/jobs", headers=own).status_code == 200
        for headers in (own | {"Origin": "https://evil.example"}, own | {"Origin": "null"}, {"Host": "", "Origin": ""}):
            assert_problem(http.post("/v1/jobs", headers=headers), 403, "forbidden")
