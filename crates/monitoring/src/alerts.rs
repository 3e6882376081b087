//! All alerts; `docs/operating/alerts.md` has a part for each.

use crate::alert::AlertGroup;

mod cluster;
mod mail;
mod process;
mod sites;
mod storage;

/// All of them, in the order of the page.
pub const ALERTS: &[AlertGroup] = &[
    AlertGroup { name: "postroad-mail", alerts: mail::ALERTS },
    AlertGroup { name: "postroad-sites", alerts: sites::ALERTS },
    AlertGroup { name: "postroad-cluster", alerts: cluster::ALERTS },
    AlertGroup { name: "postroad-storage", alerts: storage::ALERTS },
    AlertGroup { name: "postroad-process", alerts: process::ALERTS },
];
