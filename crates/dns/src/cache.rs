//! A small cache of sites, bounded in number and in time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use postroad_core::Domain;

/// Domains in one generation; two are kept.
const GENERATION_MAX: usize = 50_000;

/// Domains and their sites, in two generations: what was not asked for while one filled up is gone with the older.
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
    /// Returns the site of a domain while it is fresh.
    pub(crate) fn find(&self, domain: &Domain) -> Option<Box<str>> {
        let now = Instant::now();
        let mut generations = self.generations.lock();
        if let Some(entry) = generations.young.get(domain) {
            return (entry.until > now).then(|| entry.site.clone());
        }
        let entry = generations.old.remove(domain).filter(|entry| entry.until > now)?;
        let site = entry.site.clone();
        generations.insert(domain.clone(), entry);
        Some(site)
    }

    /// Remembers a site for a time.
    pub(crate) fn insert(&self, domain: Domain, site: Box<str>, keep: Duration) {
        self.generations.lock().insert(domain, Entry { site, until: Instant::now() + keep });
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
    fn it_forgets_what_is_stale_and_what_nobody_asks_for() {
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
