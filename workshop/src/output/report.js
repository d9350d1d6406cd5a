'use strict';
// The race: each runner takes the median start time of its image, in real time.
const race = document.getElementById('race');
if (race?.querySelector('.lane[data-seconds]')) {
  const clock = document.getElementById('clock');
  const lanes = [...race.querySelectorAll('.lane[data-seconds]')];
  const finish = Math.max(...lanes.map(lane => Number(lane.dataset.seconds)));
  let frame = 0;

  const show = seconds => {
    for (const lane of lanes) {
      const way = Math.min(1, seconds / Number(lane.dataset.seconds));
      lane.style.setProperty('--way', way);
      race.querySelector('#' + lane.dataset.result).parentElement.classList.toggle('waiting', way < 1);
    }
    clock.textContent = seconds.toFixed(3) + ' s';
  };

  // `slower` is a factor.
  const start = slower => {
    cancelAnimationFrame(frame);
    const begin = performance.now();
    race.dataset.state = 'running';
    const step = now => {
      const seconds = Math.max(0, now - begin) / 1000 / slower;
      show(Math.min(seconds, finish));
      if (seconds < finish) {
        frame = requestAnimationFrame(step);
      } else {
        race.dataset.state = 'finished';
      }
    };
    show(0);
    frame = requestAnimationFrame(step);
  };

  for (const button of race.querySelectorAll('button')) {
    button.onclick = () => start(Number(button.dataset.slower));
  }
  // Without this script the results are visible from the beginning.
  race.querySelector('.controls').hidden = false;
  show(0);
}
