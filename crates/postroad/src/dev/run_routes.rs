//! The routes that the flags of one run add: recorded beside the data, so that the next run takes them back.

use std::{io, path::Path};

use anyhow::Context;
use postroad_directory::{Item, Kind, View};
use serde::{Deserialize, Serialize};

use crate::policy::RoutePolicy;

/// What the last run's flags did to the routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunRoutes {
    #[serde(default)]
    routes: Vec<RunRoute>,
}

/// A route that a run sets, and the one that it replaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunRoute {
    set: RoutePolicy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaced: Option<RoutePolicy>,
}

impl RunRoutes {
    /// Returns what setting `routes` does to the directory.
    pub(crate) fn of(routes: &[RoutePolicy], view: &View) -> Self {
        let run = |set: &RoutePolicy| RunRoute { set: set.clone(), replaced: current(view, &set.domain) };
        Self { routes: routes.iter().map(run).collect() }
    }

    /// Reads the record; there is none before the first run.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        match std::fs::read_to_string(file) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("`{}`", file.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read `{}`", file.display())),
        }
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let new = file.with_extension("new");
        let text = toml::to_string(self)?;
        let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, file));
        written.with_context(|| format!("cannot write `{}`", file.display()))
    }

    /// Returns the routes to put back, and the domains whose route is to be removed.
    ///
    /// A route that was changed since, by `postroad apply`, stays as it is.
    pub(crate) fn take_back(&self, view: &View) -> (Vec<RoutePolicy>, Vec<String>) {
        let (mut puts, mut removals) = (Vec::new(), Vec::new());
        for RunRoute { set, replaced } in &self.routes {
            if current(view, &set.domain).as_ref() != Some(set) {
                continue;
            }
            match replaced {
                Some(replaced) => puts.push(replaced.clone()),
                None => removals.push(set.domain.clone()),
            }
        }
        (puts, removals)
    }
}

fn current(view: &View, domain: &str) -> Option<RoutePolicy> {
    match view.item(Kind::Route, domain)? {
        Item::Route(route) => {
            Some(RoutePolicy { domain: domain.to_owned(), host: route.host.to_string(), port: route.port })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use postroad_cluster::ApplyOptions;
    use postroad_directory::{Change, Command, Directory};

    use super::*;
    use crate::policy::{Changes, Policy};

    fn route(domain: &str, host: &str) -> RoutePolicy {
        RoutePolicy { domain: domain.into(), host: host.into(), port: 25 }
    }

    fn view(directory: &Directory) -> View {
        View::empty().apply(directory.everything())
    }

    fn apply(directory: &mut Directory, routes: Vec<RoutePolicy>, removals: Vec<String>) {
        let mut policy = Policy { routes, ..Policy::default() };
        policy.remove.routes = removals;
        let Changes { puts, removals, .. } =
            policy.changes(&view(directory), ApplyOptions::default()).unwrap();
        let changes = puts.into_iter().map(Change::Put).chain(removals.into_iter().map(Change::Remove));
        directory.apply(&Command::Change(changes.collect())).unwrap();
    }

    #[test]
    fn what_a_run_adds_ends_with_the_run() {
        let mut directory = Directory::new();
        apply(&mut directory, vec![route("kept.example", "a.example")], Vec::new());
        let flags =
            [route("kept.example", "b.example"), route("new.example", "b.example"), route("*", "b.example")];
        let run = RunRoutes::of(&flags, &view(&directory));
        apply(&mut directory, flags.to_vec(), Vec::new());
        // During the run, `postroad apply` changes one of them.
        apply(&mut directory, vec![route("*", "c.example")], Vec::new());

        let file = tempfile::tempdir().unwrap();
        let file = file.path().join("run-routes.toml");
        assert_eq!(RunRoutes::read(&file).unwrap(), RunRoutes::default());
        run.write(&file).unwrap();
        let (puts, removals) = RunRoutes::read(&file).unwrap().take_back(&view(&directory));
        apply(&mut directory, puts, removals);
        let view = view(&directory);
        assert_eq!(current(&view, "kept.example"), Some(route("kept.example", "a.example")));
        assert_eq!(current(&view, "new.example"), None);
        assert_eq!(current(&view, "*"), Some(route("*", "c.example")));
    }
}
