//! A cache of sites with a maximum size and lifetime.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use postroad_core::Domain;

/// Domains in one generation; the cache has two.
const GENERATION_MAX: usize = 50_000;

/// Sites of domains, in two generations: an entry not used while the young generation fills up is dropped with the old one.
#[derive(Debug, Default)]
pub(crate) struct SiteCache {
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Domain, Entry>,
    old: HashMap<Domain, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    site: Box<str>,
    until: Instant,
}

impl SiteCache {
    /// Returns the site of a domain unless it has expired.
    pub(crate) fn find(&self, domain: &Domain) -> Option<Box<str>> {
        let now = postroad_env::now();
        let mut generations = self.generations.lock();
        if let Some(entry) = generations.young.get(domain) {
            return (entry.until > now).then(|| entry.site.clone());
        }
        let entry = generations.old.remove(domain).filter(|entry| entry.until > now)?;
        let site = entry.site.clone();
        generations.insert(domain.clone(), entry);
        Some(site)
    }

    /// Stores a site for the time `keep`.
    pub(crate) fn insert(&self, domain: Domain, site: Box<str>, keep: Duration) {
        self.generations.lock().insert(domain, Entry { site, until: postroad_env::now() + keep });
    }
}

impl Generations {
    fn insert(&mut self, domain: Domain, entry: Entry) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(domain, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expired_and_unused_entries_are_dropped() {
        let cache = SiteCache::default();
        let domain = |n: usize| Domain::parse(&format!("d{n}.example")).unwrap();
        cache.insert(domain(0), "stale".into(), Duration::ZERO);
        assert_eq!(cache.find(&domain(0)), None);
        for n in 1..=3 * GENERATION_MAX {
            cache.insert(domain(n), "site".into(), Duration::from_secs(60));
            assert_eq!(cache.find(&domain(1)).as_deref(), Some("site"), "after {n}");
        }
        assert_eq!(cache.find(&domain(2)), None);
        let generations = cache.generations.lock();
        assert!(generations.young.len() <= GENERATION_MAX && generations.old.len() <= GENERATION_MAX);
    }
}
