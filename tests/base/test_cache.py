"""The cache with a limit: what was used longest ago leaves first."""

from saccade.base.cache import LruCache


def test_the_least_recently_used_leaves_first():
    cache: LruCache[str, int] = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == (1, None, 3, 2)


def test_sizes_count_and_the_newest_always_stays():
    cache: LruCache[str, str] = LruCache(10)
    cache.put("a", "first", 6)
    cache.put("a", "again", 4)
    cache.put("b", "second", 6)
    assert (cache.get("a"), cache.get("b")) == ("again", "second")
    cache.put("c", "large", 100)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == (None, None, "large", 1)
