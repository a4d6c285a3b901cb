//! End to end, through the binary: one program, modules by intent. Each test has a folder of its own.
//!
//! Most stages here are `command` stages, so no tensor backend is needed:
//! `cargo test --release --no-default-features --test it`.

mod it {
    mod cache;
    mod cancel;
    mod damage;
    mod diff;
    mod errors;
    mod explain;
    mod faults;
    mod follow;
    mod generate;
    mod graphs;
    mod hub;
    mod kills;
    mod leases;
    mod locks;
    mod metrics;
    mod place;
    mod pools;
    #[cfg(feature = "mpi")]
    mod ranks;
    mod remote;
    mod report;
    mod resume;
    mod run;
    mod s3;
    mod signals;
    mod slurm;
    mod steps;
    mod terminal;
}
