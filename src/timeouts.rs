//! The timeouts of a connection that hyper serves: header, idle and write timeout. They are checked
//! once per tick, so that a request pays next to nothing for them.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{self, Poll};

use tokio::sync::futures::Notified;
use tokio::task::unconstrained;
use tokio::time::{Duration, Instant, Sleep};

use crate::context::Context;
use crate::socket::Traffic;

/// Interval of the checks. Timeouts are late by up to one interval, and a connection is parked
/// after one to two intervals without a request.
const TICK: Duration = Duration::from_secs(1);

/// Maximum time for one response, in write timeouts, if the client keeps reading.
const MAX_WRITE_TIMEOUTS: u32 = 12;

/// Why hyper's connection has to be taken apart.
pub enum Verdict {
    /// Every response is sent, and there was no new request for a tick; or the server is closing.
    Quiet,
    /// The client does not read its responses, or much too slowly.
    WriteTimeout,
}

/// Checks a connection once per tick, and once when the server starts closing.
pub struct Timeouts<'a> {
    context: &'static Context,
    traffic: &'a Traffic,
    tick: Duration,
    timer: Pin<&'a mut Sleep>,
    closing: Pin<&'a mut Notified<'static>>,
    saw_closing: bool,
    /// Number of requests at the last check.
    requests: u32,
    /// Time of the last check that found a new request; at first the start.
    last_request: Instant,
    /// Number of writes at the last check.
    writes: u32,
    /// Time of the last check that found a new request or write; at first the start.
    last_progress: Instant,
}

impl<'a> Timeouts<'a> {
    /// Sets the time of `timer`. Async only because registering wakers needs the task's context.
    pub async fn new(
        context: &'static Context,
        traffic: &'a Traffic,
        timer: Pin<&'a mut Sleep>,
        closing: Pin<&'a mut Notified<'static>>,
    ) -> Self {
        let config = &context.config;
        let shortest = config
            .idle_timeout
            .min(config.header_timeout)
            .min(config.write_timeout);
        let now = Instant::now();
        let mut timeouts = Timeouts {
            context,
            traffic,
            tick: TICK.min(shortest / 4),
            timer,
            closing,
            saw_closing: false,
            requests: 0,
            last_request: now,
            writes: 0,
            last_progress: now,
        };
        // One poll registers the wakers of both. Requests then do not poll them.
        poll_fn(|cx| {
            timeouts.reset_timer(cx);
            _ = timeouts.closing.as_mut().poll(cx);
            Poll::Ready(())
        })
        .await;
        timeouts
    }

    fn reset_timer(&mut self, cx: &mut task::Context) {
        self.timer.as_mut().reset(Instant::now() + self.tick);
        // If tokio's task budget is used up, a timer does not register its waker.
        let timer = pin!(unconstrained(self.timer.as_mut()));
        if timer.poll(cx).is_ready() {
            // The process was stopped for a tick. Without a wake-up there would be no further check.
            cx.waker().wake_by_ref();
        }
    }

    /// Call this when hyper waits for the socket. Ready if hyper's connection has to be taken
    /// apart.
    pub fn poll(&mut self, cx: &mut task::Context) -> Poll<Verdict> {
        let starts_closing = self.context.lifecycle.is_closing() && !self.saw_closing;
        let is_due = self.timer.is_elapsed();
        if !is_due && !starts_closing {
            return Poll::Pending;
        }
        self.saw_closing |= starts_closing;
        if is_due {
            self.reset_timer(cx);
        }
        let now = Instant::now();
        let requests = self.traffic.requests();
        let has_new_request = requests != self.requests;
        if has_new_request {
            (self.requests, self.last_request) = (requests, now);
        }
        let writes = self.traffic.writes();
        if has_new_request || writes != self.writes {
            (self.writes, self.last_progress) = (writes, now);
        }
        if self.traffic.has_request_in_flight() {
            let timeout = self.context.config.write_timeout;
            let is_overdue = now - self.last_progress >= timeout
                || now - self.last_request >= timeout * MAX_WRITE_TIMEOUTS;
            return if is_overdue {
                Poll::Ready(Verdict::WriteTimeout)
            } else {
                Poll::Pending
            };
        }
        if has_new_request && !starts_closing {
            return Poll::Pending;
        }
        Poll::Ready(Verdict::Quiet)
    }

    /// Returns when the next request must begin, or `None` before the first request.
    pub fn idle_deadline(&self) -> Option<Instant> {
        (self.requests > 0).then(|| self.last_request + self.context.config.idle_timeout)
    }

    /// Returns true if a head that has begun since the last request should be complete by now.
    pub fn is_head_overdue(&self) -> bool {
        self.last_request.elapsed() >= self.context.config.header_timeout
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::config::Config;

    const WRITE_TIMEOUT: Duration = Duration::from_millis(200);

    /// Returns how long a request may wait for its response to be written. The client makes progress
    /// at each check, or none at all.
    async fn time_to_write(makes_progress: bool) -> Duration {
        let mut config = Config::default();
        config.write_timeout = WRITE_TIMEOUT;
        let context = Context::for_test(config);
        let traffic = Traffic::new(context.metrics);
        let timer = pin!(context.timers.sleep_until(Instant::now()));
        let closing = pin!(context.lifecycle.closing());
        let start = Instant::now();
        traffic.start_request();
        let mut timeouts = Timeouts::new(context, &traffic, timer, closing).await;
        let verdict = poll_fn(|cx| {
            if makes_progress {
                traffic.count_write();
            }
            timeouts.poll(cx)
        });
        let verdict = timeout(WRITE_TIMEOUT * 50, verdict).await;
        assert!(matches!(verdict, Ok(Verdict::WriteTimeout)));
        start.elapsed()
    }

    #[tokio::test]
    async fn progress_extends_the_write_timeout_up_to_a_limit() {
        let without = time_to_write(false).await;
        assert!(
            (WRITE_TIMEOUT..WRITE_TIMEOUT * 4).contains(&without),
            "{without:?}"
        );
        let with = time_to_write(true).await;
        let limit = WRITE_TIMEOUT * MAX_WRITE_TIMEOUTS;
        assert!((limit..limit * 2).contains(&with), "{with:?}");
    }
}
