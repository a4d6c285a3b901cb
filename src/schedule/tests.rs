use proptest::prelude::*;

use super::*;

fn task(needs: &[usize], pool: &str, width: usize) -> Task {
    Task { needs: needs.to_vec(), pool: pool.into(), width }
}

/// Runs a schedule to its end. `hit` and `fails` decide per task; returns the order of starts and the
/// largest number of slots in use per pool.
fn play(
    tasks: &[Task],
    pools: &BTreeMap<String, usize>,
    keep_going: bool,
    hit: impl Fn(usize) -> bool,
    fails: impl Fn(usize) -> bool,
) -> (Vec<State>, Vec<usize>) {
    let mut schedule = Schedule::new(tasks.to_vec(), pools, keep_going);
    let (mut running, mut started) = (VecDeque::new(), Vec::new());
    let mut in_use: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    while !schedule.is_finished() {
        match schedule.next_action() {
            Some(Action::Check(id)) => schedule.checked(id, hit(id)),
            Some(Action::Start(id, slots)) => {
                for &need in &tasks[id].needs {
                    assert!(schedule.states()[need].is_success(), "{id} started before {need} was there");
                }
                let used = in_use.entry(tasks[id].pool.clone()).or_default();
                let size = pools.get(&tasks[id].pool).copied().unwrap_or(1);
                assert!(slots.iter().all(|slot| *slot < size && !used.contains(slot)), "a slot given twice");
                used.extend(&slots);
                running.push_back((id, slots));
                started.push(id);
            }
            None => {
                let (id, slots) = running.pop_front().expect("an unfinished schedule has something running");
                in_use.get_mut(&tasks[id].pool).unwrap().retain(|slot| !slots.contains(slot));
                schedule.ended(id, if fails(id) { Ending::Failed } else { Ending::Done });
            }
        }
    }
    assert!(running.is_empty() || !keep_going);
    (schedule.states().to_vec(), started)
}

#[test]
fn wide_tasks_are_not_starved_by_narrow_ones() {
    let pools = BTreeMap::from([("gpu".to_owned(), 2)]);
    let tasks = [task(&[], "gpu", 1), task(&[], "gpu", 2), task(&[], "gpu", 1)];
    let (states, started) = play(&tasks, &pools, false, |_| false, |_| false);
    assert_eq!(started, [0, 1, 2]);
    assert!(states.iter().all(|state| *state == State::Done));
}

#[test]
fn a_failure_skips_what_hangs_below_and_stops_the_rest_unless_told_to_keep_going() {
    let pools = BTreeMap::from([("cpu".to_owned(), 1)]);
    let tasks = [task(&[], "cpu", 1), task(&[0], "cpu", 1), task(&[1], "cpu", 1), task(&[], "cpu", 1)];
    let (states, _) = play(&tasks, &pools, true, |_| false, |id| id == 0);
    assert_eq!(states, [State::Failed, State::Skipped, State::Skipped, State::Done]);
    let (states, _) = play(&tasks, &pools, false, |_| false, |id| id == 0);
    assert_eq!(states, [State::Failed, State::Skipped, State::Skipped, State::Cancelled]);
}

prop_compose! {
    fn random_dag()(size in 1..24_usize)(
        tasks in (0..size).map(|id| {
            let needs = proptest::collection::btree_set(0..id.max(1), 0..=id.min(3));
            (needs, 0..3_usize, 1..4_usize).prop_map(move |(needs, pool, width)| {
                let needs: Vec<usize> = needs.into_iter().filter(|need| *need < id).collect();
                task(&needs, ["cpu", "gpu", "network"][pool], width)
            })
        }).collect::<Vec<_>>(),
        seed in any::<u64>(),
        keep_going in any::<bool>(),
    ) -> (Vec<Task>, u64, bool) {
        (tasks, seed, keep_going)
    }
}

proptest! {
    #[test]
    fn every_run_ends_and_starts_only_what_it_must((tasks, seed, keep_going) in random_dag()) {
        let pools = BTreeMap::from([("cpu".to_owned(), 2), ("gpu".to_owned(), 3), ("network".to_owned(), 1)]);
        let bit = |id: usize, salt: u64| (seed.rotate_left(id as u32 * 7) ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61;
        let hit = |id: usize| bit(id, 1) < 3;
        let fails = |id: usize| bit(id, 2) == 0;
        let (states, started) = play(&tasks, &pools, keep_going, hit, fails);
        let mut unique = started.clone();
        unique.sort_unstable();
        unique.dedup();
        prop_assert_eq!(unique.len(), started.len(), "nothing runs twice");
        for (id, state) in states.iter().enumerate() {
            prop_assert!(state.is_final());
            let fed = tasks[id].needs.iter().all(|need| states[*need].is_success());
            match state {
                State::Cached => prop_assert!(hit(id) && fed),
                State::Done => prop_assert!(!hit(id) && !fails(id) && fed && started.contains(&id)),
                State::Failed => prop_assert!(fails(id) && fed && started.contains(&id)),
                State::Skipped => prop_assert!(!fed),
                _ => prop_assert!(!keep_going, "{:?} without a stop", state),
            }
        }
    }
}
