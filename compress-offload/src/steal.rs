//! Sharing tasks between the workers of a process.
//!
//! Every worker has a seat: a shelf from which the others may take tasks ([`crossbeam_deque`]), a tray to which they bring them
//! back, and a bell. A worker puts no more on its shelf than the others can be expected to take soon ([`Member::wants`]), oldest
//! first, and goes on with the shelf itself when nobody comes. Whoever has nothing to do looks at the shelves of the others;
//! whoever sleeps is woken when something is put on one.
//!
//! A task that was taken comes back, whatever happens to the thief: a [`Loan`] that is dropped, because its engine panicked,
//! brings its task back as it is.
//!
//! The tray is the only lock, taken for a push or a swap, and only for tasks that were stolen.

pub mod roster;

use crossbeam_deque::{Steal, Stealer, Worker};
use crossbeam_utils::CachePadded;
use offload::bell::Bell;
use roster::Roster;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most tasks on a shelf. Its memory is private, and must not depend on the number of workers alone.
const SHELF: usize = 16;

/// What the others see of a worker.
struct Seat<T> {
    shelf: Stealer<T>,
    tray: Mutex<Vec<T>>,
    bell: Arc<Bell>,
}

/// The workers of a process.
pub struct Team<T> {
    seats: Box<[CachePadded<Seat<T>>]>,
    roster: Roster,
}

impl<T> Team<T> {
    /// A member for each worker, of which these are the bells.
    pub fn gather(bells: impl IntoIterator<Item = Arc<Bell>>) -> Vec<Member<T>> {
        let places: Vec<_> = bells.into_iter().map(|bell| (Worker::new_fifo(), bell)).collect();
        let seats = places.iter().map(|(shelf, bell)| {
            let (shelf, bell) = (shelf.stealer(), bell.clone());
            CachePadded::new(Seat { shelf, tray: Mutex::default(), bell })
        });
        let team = Arc::new(Self { seats: seats.collect(), roster: Roster::new() });
        let member = |(seat, (shelf, _))| Member { team: team.clone(), seat, shelf, idle: false, next: seat };
        places.into_iter().enumerate().map(member).collect()
    }
}

/// One worker's part in a team.
pub struct Member<T> {
    team: Arc<Team<T>>,
    seat: usize,
    shelf: Worker<T>,
    /// What the roster has been told.
    idle: bool,
    /// Whom to steal from next.
    next: usize,
}

impl<T> Member<T> {
    /// How many more tasks this worker should put on its shelf: enough for every idle worker to take two, and for each of the
    /// others to find one when it runs out of work of its own.
    #[inline]
    pub fn wants(&self) -> usize {
        let helpers = self.team.seats.len() - 1;
        if helpers == 0 {
            return 0;
        }
        let wanted = (helpers + self.team.roster.idle_besides(self.seat)).min(SHELF);
        wanted.saturating_sub(self.shelf.len())
    }

    /// Puts a task on the shelf, behind those that are there. [`Self::call`] when all are.
    pub fn offer(&mut self, task: T) {
        self.shelf.push(task);
    }

    /// Wakes as many sleeping workers as there are tasks on the shelf. Returns how many.
    pub fn call(&mut self) -> usize {
        let team = &self.team;
        team.roster.wake(self.seat, self.shelf.len(), |seat| team.seats[seat].bell.ring())
    }

    /// The oldest task on the shelf, for this worker itself.
    #[inline]
    pub fn take(&mut self) -> Option<T> {
        if self.team.seats.len() == 1 { None } else { self.shelf.pop() }
    }

    /// Tasks on the shelf.
    pub fn shelved(&self) -> usize {
        self.shelf.len()
    }

    /// Whether there is something to steal.
    #[inline]
    pub fn sees_work(&self) -> bool {
        let found =
            |(seat, place): (usize, &CachePadded<Seat<T>>)| seat != self.seat && !place.shelf.is_empty();
        self.team.seats.len() > 1 && self.team.seats.iter().enumerate().any(found)
    }

    /// A task of somebody else.
    pub fn steal(&mut self) -> Option<Loan<T>> {
        let seats = self.team.seats.len();
        for _ in 0..seats {
            self.next = if self.next + 1 < seats { self.next + 1 } else { 0 };
            if self.next != self.seat
                && let Some(task) = self.steal_from(self.next)
            {
                // Whatever is left there is for somebody else.
                let left = self.team.seats[self.next].shelf.len();
                if left > 0 {
                    let team = &self.team;
                    team.roster.wake(self.seat, left, |seat| team.seats[seat].bell.ring());
                }
                return Some(Loan { team: self.team.clone(), home: self.next, task: Some(task) });
            }
        }
        None
    }

    fn steal_from(&self, seat: usize) -> Option<T> {
        let shelf = &self.team.seats[seat].shelf;
        if shelf.is_empty() {
            return None;
        }
        loop {
            match shelf.steal() {
                Steal::Success(task) => return Some(task),
                Steal::Empty => return None,
                Steal::Retry => std::hint::spin_loop(),
            }
        }
    }

    /// Moves the tasks that others have brought back into `tasks`.
    pub fn collect(&mut self, tasks: &mut Vec<T>) {
        tasks.append(&mut lock(&self.team.seats[self.seat].tray));
    }

    /// Whether this worker has nothing to do.
    #[inline]
    pub fn set_idle(&mut self, idle: bool) {
        if self.idle != idle {
            self.idle = idle;
            self.team.roster.set_idle(self.seat, idle);
        }
    }

    /// This worker is about to sleep. True when there is something to steal, so that it should not.
    pub fn lie_down(&mut self) -> bool {
        if self.team.seats.len() == 1 {
            return false;
        }
        self.team.roster.lie_down(self.seat);
        self.sees_work()
    }

    /// This worker is awake.
    pub fn get_up(&mut self) {
        if self.team.seats.len() > 1 {
            self.team.roster.get_up(self.seat);
        }
    }
}

impl<T> Drop for Member<T> {
    /// A worker that is gone is not to be woken.
    fn drop(&mut self) {
        self.set_idle(false);
        self.get_up();
    }
}

/// A task of another worker. Dropping it brings the task back.
pub struct Loan<T> {
    team: Arc<Team<T>>,
    home: usize,
    task: Option<T>,
}

impl<T> Loan<T> {
    /// The task.
    pub fn task(&mut self) -> &mut T {
        // It is there until the loan is dropped.
        self.task.as_mut().unwrap_or_else(|| unreachable!("a loan is returned once"))
    }
}

impl<T> Drop for Loan<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            let seat = &self.team.seats[self.home];
            lock(&seat.tray).push(task);
            seat.bell.ring();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
